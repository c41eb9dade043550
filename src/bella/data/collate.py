"""Examples into one batch, where a data set comes without a collate function of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import default_collate

from bella.errors import BellaError
from bella.trees import tensors_of


def collate(items: list[Any]) -> Any:
    """Examples as one batch: torch's ``default_collate``, but lists of numbers are tensors.

    Of the token numbers of eight texts torch would make a list with a tensor of eight for each
    position; here they become one tensor (8, length).

    Raises:
        BellaError: the examples differ in shape, or hold what cannot be stacked.
    """
    items = [_with_tensors(item) for item in items]
    try:
        return default_collate(items)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        first = tensors_of(items[0])
        for item in items[1:]:
            for one, other in zip(first, tensors_of(item), strict=False):
                if one.shape != other.shape:
                    raise BellaError(
                        f"Examples of different shapes ({tuple(one.shape)} and "
                        f"{tuple(other.shape)}) do not fit into one batch: pass a collate_fn that "
                        "pads them (transformers' DataCollatorWithPadding, say), or pad the data."
                    ) from None
        raise BellaError(
            f"The examples cannot be put into one batch ({' '.join(str(error).split())}): make "
            "them tensors or numbers, or pass a collate_fn."
        ) from None


def _with_tensors(item: Any) -> Any:
    """An example whose lists of numbers are tensors; a pair stays a pair, even of two numbers."""
    if isinstance(item, Mapping):
        return {key: _tensor(value) for key, value in item.items()}
    if isinstance(item, tuple | list) and not hasattr(item, "_fields"):
        return type(item)(_with_tensors(x) if isinstance(x, Mapping) else _tensor(x) for x in item)
    return item


def _tensor(value: Any) -> Any:
    if not isinstance(value, list) or not _is_numeric(value):
        return value
    try:
        return torch.tensor(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BellaError(
            f"An example holds a list that is no tensor ({' '.join(str(error).split())}): give "
            "lists of numbers of one length, or pass a collate_fn."
        ) from None


def _is_numeric(values: list) -> bool:
    return all(
        _is_numeric(x) if isinstance(x, list) else isinstance(x, bool | int | float) for x in values
    )
