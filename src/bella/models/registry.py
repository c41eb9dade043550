"""Opening a pre-trained network by its name."""

from __future__ import annotations

from collections.abc import Callable

from bella.errors import BellaError, nearest
from bella.models.efficientnet_lite import open_efficientnet_lite0
from bella.models.hugging_face import open_hugging_face
from bella.models.opened import Opened, check_counts, check_runs
from bella.models.timm import open_timm

Factory = Callable[[str, int | None, int | None, int], Opened]
"""(name behind the colon, classes, image_size, seed) -> the opened network."""

registry: dict[str, Factory] = {
    "efficientnet-lite0": open_efficientnet_lite0,
    "hf:": open_hugging_face,
    "timm:": open_timm,
}
"""Factories by name; one that ends in a colon opens everything behind that colon."""


def open_network(
    name: str, classes: int | None = None, image_size: int | None = None, seed: int = 0
) -> Opened:
    """Open a pre-trained network for (network, preprocess, defaults).

    Args:
        name: ``efficientnet-lite0``, ``hf:<name or folder>`` or ``timm:<name>``, or a name that was
            added to ``registry``.
        classes: size of a fresh head; without it, the head as it was trained.
        image_size: side of the images, in pixels; without it, the network's own.
        seed: of the fresh head.

    Raises:
        BellaError: the name is unknown (the message lists near ones) or the arguments do not fit.
        MissingExtraError: the library that has the network is not installed.
    """
    family, colon, rest = name.partition(":")
    if family + colon not in registry:
        raise BellaError(f"No network is called {name!r}: near are {nearest(name, registry)}.")
    if colon and not rest:
        raise BellaError(f"{name!r} is only a family: write the network's name behind the colon.")
    check_counts(classes, image_size)
    opened = registry[family + colon](rest, classes, image_size, seed)
    check_runs(name, opened)
    return opened
