"""Which examples training draws from: N of prior and coupling, and the rows of a cache.

N is not the length of the data set: a ``SubsetRandomSampler`` draws from its subset, a
``WeightedRandomSampler`` from what has weight, and the number of draws an epoch (``num_samples``)
does not matter. Samplers are looked at and never iterated: that would use up their random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from bella.errors import BellaError
from bella.inputs import split


def examples(loader: Any, given: Any = None) -> int:
    """N, the number of examples that training draws from.

    Args:
        loader: of batches.
        given: the caller's word for it, where he has given one.

    Raises:
        BellaError: it cannot be told, or what is given is no number of examples.
    """
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise BellaError(
                f"data_size={given!r}: give the number of training examples, a whole number of at "
                "least 1, or leave it out to have it counted."
            )
        return given
    count = _count(loader)
    if count is None:
        raise BellaError(
            f"It cannot be told how many examples {_name(loader)} draws from, and the prior and "
            "the coupling are divided by their number: pass transport_options={'data_size': N}."
        )
    if count == 0:
        raise BellaError(
            f"The training data are {_name(loader)} that draws from no example: give it positions, "
            "or weights above 0."
        )
    return count


def _count(loader: Any) -> int | None:
    if not isinstance(loader, DataLoader):
        return None
    if isinstance(loader.dataset, IterableDataset):
        return len(loader.dataset)  # type: ignore[arg-type]  # its loader has a length
    positions = drawn(loader)
    if positions is None or loader.batch_sampler is not None:
        return None if positions is None else len(positions)
    if not isinstance(loader.dataset, list | tuple):
        return None
    labels = [split(loader.dataset[i])[2] for i in positions]  # of whole batches
    return sum(len(y) if y.dim() else 1 for y in labels)


def drawn(loader: DataLoader) -> Sequence[int] | None:
    """The positions that a loader draws from; ``None`` where its sampler does not show it.

    A sampler of a kind that is not known here counts as drawing from all of the data set where it
    gives as many positions an epoch as that holds.
    """
    if loader.batch_sampler is None:
        return _positions(loader.sampler, loader.dataset)
    batches: Any = loader.batch_sampler
    if isinstance(batches, list | tuple):
        return sorted({int(i) for batch in batches for i in batch})
    inner = getattr(batches, "sampler", None)
    found = None if inner is None else _positions(inner, loader.dataset)
    if found is not None and type(batches) is BatchSampler and in_fixed_order(loader):
        kept = len(batches) * batches.batch_size if batches.drop_last else len(found)
        return found[:kept]  # of a fixed order the same last examples are dropped each time
    return found


def _positions(sampler: Any, dataset: Any) -> Sequence[int] | None:
    if _works_like(sampler, SequentialSampler) or _works_like(sampler, RandomSampler):
        return range(len(sampler.data_source))
    if _works_like(sampler, SubsetRandomSampler):
        return sorted({int(i) for i in sampler.indices})
    if _works_like(sampler, WeightedRandomSampler):
        return torch.as_tensor(sampler.weights).nonzero().flatten().tolist()
    if _works_like(sampler, DistributedSampler):
        return range(len(sampler.dataset))
    if isinstance(sampler, range):
        return sampler
    if isinstance(sampler, list | tuple | Tensor):
        return list(dict.fromkeys(int(i) for i in sampler))
    try:
        return range(len(dataset)) if len(sampler) == len(dataset) else None
    except (TypeError, NotImplementedError):
        return None


def _works_like(sampler: Any, kind: type) -> bool:
    """Whether this is a sampler of a kind and not a subclass that draws in its own way."""
    return isinstance(sampler, kind) and type(sampler).__iter__ is kind.__iter__  # type: ignore[attr-defined]


def in_fixed_order(loader: DataLoader) -> bool:
    """Whether a loader is known to give the same batches in the same order each time."""
    batches: Any = loader.batch_sampler
    if isinstance(batches, list | tuple):
        return True
    if batches is not None and type(batches) is not BatchSampler:
        return False
    sampler: Any = loader.sampler if batches is None else batches.sampler
    if isinstance(loader.dataset, IterableDataset):
        return False
    fixed = isinstance(sampler, list | tuple | range | Tensor)
    return fixed or _works_like(sampler, SequentialSampler)


def has_generators(loader: Any) -> bool:
    """Whether a loader draws from generators of its own, which no seed of a run reaches."""
    return any(getattr(part, "generator", None) is not None for part in (loader, *parts_of(loader)))


def parts_of(loader: Any) -> list[Any]:
    """What decides what a loader reads: its batch sampler, samplers and data set."""
    batches = getattr(loader, "batch_sampler", None)
    parts = [
        batches,
        getattr(batches, "sampler", None),
        getattr(loader, "sampler", None),
        getattr(loader, "dataset", None),
    ]
    return list({id(part): part for part in parts if part is not None}.values())


def _name(loader: Any) -> str:
    if not isinstance(loader, DataLoader):
        return f"a {type(loader).__name__}"
    if loader.batch_sampler is None:
        return "a loader of whole batches (batch_size=None)"
    inner = getattr(loader.batch_sampler, "sampler", None)
    return f"a {type(loader.batch_sampler if inner is None else inner).__name__}"
