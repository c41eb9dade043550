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

ATTENTION = (("q_proj", "v_proj"), ("query", "value"), ("qkv",))
"""Names of attention's projections; LoRA's habit is to adapt the query's and the value's."""


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


def _is_matrix(module: nn.Module) -> bool:
    """Whether a layer's weight is a single matrix, so that low-rank particles exist for it."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def guess_defaults(network: nn.Module) -> Defaults:
    """Targets for a network of an unknown family.

    The head is the last Linear. The targets are attention's query and value projections, or, where
    there is no attention, every Linear and ungrouped convolution between the first and the head.

    Raises:
        BellaError: the network has no Linear that could be its head.
    """
    modules = dict(network.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if not linear:
        raise BellaError(
            f"{type(network).__name__} has no Linear layer, so no head is found: name "
            "target_modules and modules_to_save yourself."
        )
    head = linear[-1]
    last_names = {name.rpartition(".")[2] for name in modules}
    for names in ATTENTION:
        if last_names.issuperset(names):
            return Defaults(names, (head,))
    matrices = [name for name, module in modules.items() if _is_matrix(module) and name != head]
    return Defaults(tuple(matrices[1:]), (head,))
