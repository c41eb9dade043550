"""What opening a pre-trained network gives: the network, its preprocessing, and what to adapt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from bella.data.images import Preprocess
from bella.errors import BellaError
from bella.files import shortened
from bella.particles.architectures import heads_of, targets_of


@dataclass(frozen=True)
class Defaults:
    """What to adapt where nobody says: arguments of ``bella.low_rank``.

    Args:
        target_modules: layers that get low-rank particles.
        modules_to_save: layers of which every particle has a whole copy: the head.
    """

    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...]


class Opened(NamedTuple):
    """A pre-trained network in evaluation mode with what belongs to it."""

    network: nn.Module
    preprocess: Preprocess
    defaults: Defaults


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw fresh layers from ``seed`` and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def check_counts(classes: int | None, image_size: int | None) -> None:
    """Refuse a head or an image of no size.

    Raises:
        BellaError: a number is below 1.
    """
    for name, value in (("classes", classes), ("image_size", image_size)):
        if value is not None and value < 1:
            raise BellaError(f"{name}={value} must be a positive number.")


def check_runs(name: str, opened: Opened) -> None:
    """Refuse a size of images that the network cannot take, by showing it one.

    No configuration says this reliably: some networks interpolate their position embeddings, some
    refuse, some have none.

    Raises:
        BellaError: the network failed on a blank image of the preprocessing's size.
    """
    height, width = opened.preprocess.height, opened.preprocess.width
    try:
        with torch.no_grad():
            opened.network(torch.zeros(1, 3, height, width))
    except Exception as error:  # whatever its layers raise
        raise BellaError(
            f"{name} does not take images of {height}x{width} pixels ({shortened(error)}): choose "
            "another image_size, or none for the network's own."
        ) from error


def check_patches(name: str, network: nn.Module, image_size: int | None) -> None:
    """Refuse a size that somebody asks for and that patches do not fill: networks that stretch
    their position embeddings take it, and do not see the rim that is left over.

    A network's own size is its own affair.

    Raises:
        BellaError: the network reads images by patches of which no whole number fits.
    """
    reads = next(
        (m for m in network.modules() if type(m) is nn.Conv2d and m.in_channels == 3), None
    )
    if image_size is None or reads is None or reads.kernel_size != reads.stride:
        return
    side, rest = max(reads.stride), max(image_size % step for step in reads.stride)
    if rest and reads.padding in ((0, 0), "valid"):
        fits = " or ".join(str(n * side) for n in (image_size // side, image_size // side + 1) if n)
        raise BellaError(
            f"{name} reads patches of {side} pixels, and of image_size={image_size} it would not "
            f"see the last {rest}: choose {fits}."
        )


def guess_defaults(network: nn.Module) -> Defaults:
    """Targets and heads as ``"auto"`` means them; see `bella.particles.architectures`.

    Raises:
        BellaError: the network has no Linear that could be its head, or nothing to adapt.
    """
    heads = heads_of(network)
    return Defaults(targets_of(network), heads)
