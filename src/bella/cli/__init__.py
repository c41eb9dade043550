"""The command ``bella``: thin on top of the library; every command imports what it needs."""

from bella.cli.app import main

__all__ = ["main"]
