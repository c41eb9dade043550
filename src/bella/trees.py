"""Trees of tensors: tuples, lists, mappings, dataclasses and what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply ``function`` to every tensor of a tuple, list, mapping, dataclass or tensor.

    Containers keep their type (named tuples and transformers' ``ModelOutput`` too); anything else
    is handed through untouched.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, item) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(function, item) for item in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(
            tree, **{name: map_tensors(function, value) for name, value in fields.items()}
        )
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(function, value) for key, value in tree.items()}
        return mapped if type(tree) is dict else type(tree)(mapped)  # type: ignore[call-arg]
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor of ``tree``, in order (see `map_tensors`)."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(note, tree)
    return found


def check_finite(tree: Any, what: str) -> None:
    """Raise if a floating tensor of ``tree`` holds a NaN or an infinity.

    Raises:
        BellaError: it does; the sentence begins with ``what``.
    """

    def check(x: Tensor) -> None:
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise BellaError(f"{what} hold NaN or infinite values: clean them first.")

    map_tensors(check, tree)
