"""The forms that data may have, as loaders that are used as they are given.

A loader's sampler, batch sampler, collate function and workers stay its own: nothing is rebuilt,
reset or put into another order. What cannot work is refused before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from bella.data.collate import collate
from bella.errors import BellaError
from bella.inputs import split
from bella.particles.stream import Stream
from bella.trees import tensors_of

Data = Dataset | DataLoader | Sequence | Iterable
"""A data set of examples, a pair of tensors, a list of examples, a stream, or a loader."""


def opened(
    data: Any,
    batch_size: int,
    *,
    shuffle: bool,
    collate_fn: Callable[[list], Any] | None = None,
    what: str = "data",
) -> Any:
    """An iterable of batches over ``data``; a loader that was given is returned as it is.

    Args:
        data: a data set, a list of examples, a pair of tensors (inputs, labels), an
            ``IterableDataset``, a ``DataLoader``, or another iterable of batches.
        batch_size: examples a batch, where no loader was given.
        shuffle: whether data without a loader are read in a random order; streams never are.
        collate_fn: puts examples into a batch, where no loader was given; `collate.collate` by
            default.
        what: the data's name in messages.

    Raises:
        BellaError: data of no such form, or of no example.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise BellaError(f"batch_size={batch_size!r}: give a whole number of at least 1.")
    if isinstance(data, Mapping):
        names = ", ".join(map(repr, data))
        raise BellaError(
            f"The {what} are a {type(data).__name__} of {names}: choose one of its parts where "
            f"these are parts (data[{next(iter(data), 'train')!r}]), and where they are columns "
            "give datasets.Dataset.from_dict(data) or a pair (inputs, labels)."
        )
    if hasattr(data, "iloc"):
        raise BellaError(
            f"The {what} are a {type(data).__name__} of pandas: give datasets.Dataset.from_pandas"
            "(data), or a pair of tensors (inputs, labels)."
        )
    if isinstance(data, str | bytes) or hasattr(data, "__fspath__"):
        raise BellaError(
            f"The {what} are a path ({data!r}): open it first, images with bella.data.open_images."
        )
    if isinstance(data, list | tuple) and data and _are_arrays(data):
        data = _of_tensors(data, what)
    if is_loader(data):
        if not hasattr(data, "__iter__"):
            raise BellaError(
                f"The {what} are a {type(data).__name__}: give a data set with __len__ and "
                "__getitem__, a pair of tensors (inputs, labels), or a loader of batches."
            )
        return data
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": collate_fn or collate}
    if isinstance(data, IterableDataset):
        return DataLoader(data, **options)
    if not hasattr(data, "__len__"):
        raise BellaError(
            f"The {what} are a {type(data).__name__} without a length: give it __len__, or pass a "
            "DataLoader with a sampler of your own."
        )
    if len(data) == 0:
        raise BellaError(f"There are no {what}, what was given is empty: give some examples.")
    if collate_fn is None and isinstance(data, list | tuple) and _holds_batches(data[0]):
        if not shuffle:
            return data
        raise BellaError(
            f"The {what} are a list that seems to hold whole batches: pass DataLoader(data, "
            "batch_size=None) if they are, and DataLoader(data, batch_size) if they are examples."
        )
    return DataLoader(data, shuffle=shuffle, **options)


def is_loader(data: Any) -> bool:
    """Whether data come in batches; what can be read by position, and streams, hold examples."""
    examples = isinstance(data, IterableDataset) or hasattr(data, "__getitem__")
    return isinstance(data, DataLoader) or not examples


def check_collate(collate_fn: Any, *data: Any) -> None:
    """Refuse a collate function that nothing would use.

    Raises:
        BellaError: all data are loaders.
    """
    if collate_fn is not None and all(is_loader(some) for some in data if some is not None):
        raise BellaError(
            "collate_fn is for data sets, and a loader makes its batches by itself: give "
            "collate_fn to the loader, or pass its data set."
        )


def _are_arrays(data: Sequence) -> bool:
    return all(isinstance(x, Tensor | np.ndarray) for x in data)


def _of_tensors(data: Sequence, what: str) -> TensorDataset:
    if any(isinstance(x, np.ndarray) for x in data):
        raise BellaError(
            f"The {what} are NumPy arrays: give tensors, torch.as_tensor(x, dtype=torch.float32) "
            "for inputs and torch.as_tensor(y) for labels."
        )
    if len(data) != 2:
        raise BellaError(
            f"The {what} are {len(data)} tensors: give a pair (inputs, labels), and for several "
            "inputs a data set whose items are ((input, input), label)."
        )
    if not all(x.dim() for x in data) or len(data[0]) != len(data[1]):
        raise BellaError(
            f"The {what} are a pair of tensors of shapes {tuple(data[0].shape)} and "
            f"{tuple(data[1].shape)}: inputs and labels must be as many."
        )
    return TensorDataset(*data)


def _holds_batches(first: Any) -> bool:
    """Whether the first entry of a list is a whole batch: one axis runs through inputs and labels.

    Tokens with a label each are an example: there inputs have no axis beside that of the labels.
    """
    try:
        args, kwargs, labels = split(first)
    except BellaError:
        return False
    if args and isinstance(args[0], Stream):
        return True
    inputs = tensors_of((args, kwargs))
    if not isinstance(labels, Tensor) or not labels.dim() or not inputs:
        return False
    together = all(x.dim() and len(x) == len(labels) for x in inputs)
    return together and max(x.dim() for x in inputs) > 1


# ------------------------------------------------------------ what training asks of a loader
