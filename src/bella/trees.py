"""Trees of tensors: tuples, lists, mappings, dataclasses and what they hold."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError

PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
"""Leaves that are what they say; anything else but a tensor is an object of unknown contents."""


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply ``function`` to every leaf of a tuple, list, mapping or dataclass.

    Containers keep their type (named tuples and transformers' ``ModelOutput`` too); whatever is
    none is a leaf.
    """
    kind = type(tree)  # most trees are these; they come first because every pass goes through here
    if kind is Tensor or tree is None:
        return function(tree)
    if kind is tuple:
        return tuple([map_leaves(function, item) for item in tree])
    if kind is dict:
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, (Tensor, *PLAIN)):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind(*(map_leaves(function, item) for item in tree))
    if isinstance(tree, tuple | list):
        return kind(map_leaves(function, item) for item in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(
            tree, **{name: map_leaves(function, value) for name, value in fields.items()}
        )
    if isinstance(tree, Mapping):
        return kind({key: map_leaves(function, value) for key, value in tree.items()})
    return function(tree)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply ``function`` to every tensor of a tree; other leaves are handed through untouched."""
    return map_leaves(lambda x: function(x) if isinstance(x, Tensor) else x, tree)


def leaves_of(tree: Any) -> list[Any]:
    """Every leaf of ``tree``, in order (see `map_leaves`)."""
    found: list[Any] = []

    def note(x: Any) -> Any:
        found.append(x)
        return x

    map_leaves(note, tree)
    return found


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor of ``tree``, in order (see `map_leaves`)."""
    if type(tree) is Tensor:
        return [tree]
    return [x for x in leaves_of(tree) if isinstance(x, Tensor)]


def fresh(tree: Any) -> Any:
    """The same tree with copies of its objects of unknown contents: a pass may fill a cache."""

    return map_leaves(lambda leaf: copied(leaf) if is_object(leaf) else leaf, tree)


def is_object(leaf: Any) -> bool:
    """Whether a leaf is an object of unknown contents."""
    return not isinstance(leaf, (Tensor, *PLAIN))


def copied(leaf: Any, tensor: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A copy of an object of unknown contents, such as a key-value cache.

    Args:
        leaf: the object.
        tensor: what stands in the copy for a tensor in the object. ``copy.deepcopy`` refuses one
            that gradients go through, and one that torch.func has wrapped.
    """
    inside = [x for x in tensors_within(leaf) if not isinstance(x, nn.Parameter)]
    return copy.deepcopy(leaf, {id(x): tensor(x) for x in inside})


def structure(tree: Any) -> Any:
    """What a tree is like beside its sizes, as something to look up by.

    Containers with their keys, tensors by dtype, device and which axes have length 0, 1 or more,
    plain leaves by value, floats and others by type.
    """
    if isinstance(tree, Tensor):
        return tree.dtype, tree.device.type, tuple([min(size, 2) for size in tree.shape])
    if isinstance(tree, tuple | list):
        return type(tree).__name__, tuple([structure(item) for item in tree])
    if isinstance(tree, Mapping):
        return tuple([(key, structure(value)) for key, value in tree.items()])
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return type(tree).__name__, tuple(
            [(f.name, structure(getattr(tree, f.name))) for f in dataclasses.fields(tree)]
        )
    known = isinstance(tree, PLAIN) and not isinstance(tree, float)  # numbers are sizes, not flags
    return tree if known else type(tree).__name__


def holds_tensors(leaf: Any) -> bool:
    """Whether an object that is no container of ours holds a tensor somewhere inside.

    A key-value cache does; a configuration does not.
    """
    return next(tensors_within(leaf), None) is not None


def tensors_within(leaf: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors inside an object that is no container of ours."""
    if isinstance(leaf, Tensor):
        yield leaf
    if isinstance(leaf, (Tensor, *PLAIN, type)) or depth == 0:
        return
    if isinstance(leaf, Mapping):
        inside: Any = leaf.values()
    elif isinstance(leaf, list | tuple | set):
        inside = leaf
    else:
        inside = getattr(leaf, "__dict__", {}).values()
    for item in inside:
        yield from tensors_within(item, depth - 1)


def check_finite(tree: Any, what: str) -> None:
    """Raise if a floating tensor of ``tree`` holds a NaN or an infinity.

    Raises:
        BellaError: it does; the sentence begins with ``what``.
    """

    def check(x: Tensor) -> None:
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise BellaError(f"{what} hold NaN or infinite values: clean them first.")

    map_tensors(check, tree)
