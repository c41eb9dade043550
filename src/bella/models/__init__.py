"""Networks by name, each with its preprocessing and the layers that are worth adapting.

To add a family, write a file with a function (classes, image size, seed) -> `Opened` and put it in
`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from bella.data.images import Preprocess
from bella.errors import BellaError, nearest


@dataclass(frozen=True)
class Opened:
    """A network ready to be adapted.

    Attributes:
        network: with one output a class.
        preprocess: from PIL images to its inputs.
        target_modules: layers worth adapting by default.
        modules_to_save: its head.
    """

    network: nn.Module
    preprocess: Preprocess
    target_modules: Sequence[str]
    modules_to_save: Sequence[str]


def _lite(name: str, classes: int, image_size: int | None, seed: int) -> Opened:
    from bella.models.efficientnet_lite import open_lite0

    return open_lite0(classes, image_size or 160, seed)


def _hf(name: str, classes: int, image_size: int | None, seed: int) -> Opened:
    from bella.models.hugging_face import open_hugging_face

    return open_hugging_face(name, classes, image_size, seed)


def _timm(name: str, classes: int, image_size: int | None, seed: int) -> Opened:
    from bella.models.timm import open_timm

    return open_timm(name, classes, image_size, seed)


FAMILIES: dict[str, Callable[[str, int, int | None, int], Opened]] = {
    "efficientnet-lite0": _lite,
    "hf": _hf,
    "timm": _timm,
}


def open_network(
    name: str, classes: int, *, image_size: int | None = None, seed: int = 0
) -> Opened:
    """Open a pre-trained network with a fresh head.

    Args:
        name: ``efficientnet-lite0``, ``hf:NAME`` (a name on the hub, or a folder) or ``timm:NAME``.
        classes: number of outputs.
        image_size: pixels; by default the network's own.
        seed: decides the head's start.

    Raises:
        BellaError: an unknown family, or a network that cannot be opened.
        MissingExtraError: the library that it comes from is not installed.
    """
    family, _, rest = name.partition(":")
    if family not in FAMILIES:
        raise BellaError(
            f"network {name!r} is unknown: near names are {nearest(family, FAMILIES)} "
            "(hf:NAME and timm:NAME take any network of those libraries)."
        )
    return FAMILIES[family](rest, classes, image_size, seed)
