"""How a comparison reads its examples: anew in every batch, or once for all where they are the same
each time and few enough to be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch.utils.data import DataLoader, Subset, default_collate

from bella.data.collate import collate
from bella.training.cache import are_fixed
from bella.trees import map_tensors, tensors_of

KEPT = 2**28
"""Bytes of examples of a part that are kept as they were read."""


@dataclass(frozen=True)
class Examples:
    """From numbers among some examples to a batch of them; workers can take it along.

    Attributes:
        pool: what they are read from, by position.
        positions: theirs.
        anew: whether an example is read each time that it is asked for.
    """

    pool: Any
    positions: Sequence[int]
    anew: bool = True

    def __call__(self, rows: list[int]) -> Any:
        """The examples at ``rows`` of ``positions``."""
        return default_collate([self.pool[self.positions[i]] for i in rows])


def read(pool: Any, positions: Sequence[int], workers: int, bar: Progress) -> Examples:
    """Some examples of a pool; kept where that is possible.

    Args:
        pool: a data set.
        positions: in it.
        workers: processes that read; 0 reads in this one.
        bar: where progress is shown.
    """
    some: Any = Subset(pool, positions)
    anew = Examples(pool, positions)
    if not (positions and are_fixed(some)):
        return anew
    each = sum(x.numel() * x.element_size() for x in tensors_of(some[0]))
    if each * len(positions) > KEPT:
        return anew
    kept: list[Any] = []
    task = bar.add_task("examples", total=len(positions))
    for batch in read_once(some, workers, list):
        # What a worker sends holds an open file for each tensor.
        kept += map_tensors(torch.clone, batch) if workers else batch
        bar.update(task, completed=len(kept))
    bar.remove_task(task)
    return Examples(kept, range(len(kept)), anew=False)


def read_once(some: Any, workers: int, collate_fn: Callable[[list], Any] = collate) -> DataLoader:
    """The loader that reads some examples once for all."""
    return DataLoader(some, 64, collate_fn=collate_fn, num_workers=workers)
