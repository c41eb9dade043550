"""Batches and loaders: the forms data may have, and one seed for their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from bella.errors import BellaError

Data = Dataset | DataLoader | Sequence[Tensor]


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch: all randomness of an epoch follows from it, so that a run can be
    resumed at any epoch without a saved generator."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % 2**63


def as_dataset(data: Data) -> Dataset | None:
    """The data set behind ``data``; ``None`` where it has no fixed items."""
    if isinstance(data, DataLoader):
        data = data.dataset
    elif isinstance(data, tuple | list) and all(isinstance(x, Tensor) for x in data):
        data = TensorDataset(*data)
    return data if hasattr(data, "__len__") and hasattr(data, "__getitem__") else None  # type: ignore[return-value]


def loader(
    data: Data,
    batch_size: int,
    *,
    shuffle: bool,
    items: Dataset | None = None,
    collate: Callable[[list], Any] | None = None,
) -> DataLoader:
    """A loader over ``data``; ``items`` with ``collate`` stand for its data set (a cache, say).

    A loader that was given keeps its sampler and batch size.

    Raises:
        BellaError: there are no data.
    """
    dataset = items if items is not None else as_dataset(data)
    if isinstance(data, DataLoader):
        if items is None:
            return data
        sampler = None if isinstance(data.sampler, RandomSampler) else data.sampler
        return DataLoader(
            items,
            batch_size=data.batch_size,
            shuffle=sampler is None,
            sampler=sampler,
            drop_last=data.drop_last,
            collate_fn=collate,
        )
    if dataset is None or len(dataset) == 0:  # type: ignore[arg-type]
        raise BellaError("There are no training data: give a data set or loader with examples.")
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, collate_fn=collate)


def own_batches(loader: DataLoader, particles: int, seed: int) -> Iterator[Any]:
    """Batches with a leading particle axis; each particle has its own order of the data."""
    orders = []
    for particle in range(particles):
        generator = torch.Generator().manual_seed(seed + 1 + particle)
        orders.append(
            DataLoader(
                loader.dataset,
                batch_size=loader.batch_size,
                shuffle=True,
                generator=generator,
                drop_last=loader.drop_last,
                collate_fn=loader.collate_fn,
            )
        )
    for batches in zip(*orders, strict=True):
        yield stack(batches)


def stack(trees: Sequence[Any]) -> Any:
    """Stack equal trees of tensors along a new first axis.

    Raises:
        BellaError: they hold something other than tensors that is not the same in all of them.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.stack(list(trees))
    if isinstance(first, Mapping):
        return {key: stack([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(stack(column) for column in zip(*trees, strict=True))
    plain = first is None or isinstance(first, bool | int | float | str)
    if not plain or any(tree != first for tree in trees):
        raise BellaError(
            f"minibatches='own' stacks tensors, and the batches hold a {type(first).__name__}: "
            "collate them into tensors, without a cached prefix."
        )
    return first
