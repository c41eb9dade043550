"""Files that installed packages bring, none of whose code is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bella.errors import MissingExtraError


def package_folder(package: str, what: str, get: str) -> Path:
    """The folder of an installed package.

    Args:
        package: its import name.
        what: what it is needed for.
        get: how to install it.

    Raises:
        MissingExtraError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{what} needs the package {package}, which is missing: {get}.")
    return Path(spec.submodule_search_locations[0])
