"""Pre-trained networks by name, each with its preprocessing and with what to adapt in it."""

from bella.models.efficientnet_lite import efficientnet_lite0
from bella.models.opened import Defaults, Opened, guess_defaults
from bella.models.registry import open_network, registry

__all__ = [
    "Defaults",
    "Opened",
    "efficientnet_lite0",
    "guess_defaults",
    "open_network",
    "registry",
]
