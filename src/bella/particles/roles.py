"""Which tensors carry the batch, and along which axis: found by place, and never from a size.

A *place* is a tensor's position among the leaves of the inputs, of what arrives at the entrance, of
a particle layer's arguments or of the outputs. Two calls on different numbers of examples show the
axis along which its length follows them; that *role* is asked for ever after, whatever the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.trees import map_leaves, tensors_of

Role = int | None
"""The axis that carries the batch, so many rows for each example; ``None`` for a tensor that is
the same whatever the batch."""


class MixedError(Exception):
    """A tensor's size follows the batch in no simple way. The message says how."""


@dataclass(frozen=True)
class Layer:
    """What a particle layer meets in the passes of a kind.

    Attributes:
        inputs: roles of the tensors among its arguments.
        outputs: roles of the tensors that it returns.
        by_example: whether the rows of an example stand together, in the order of the examples.
        why_not: why its rows cannot be told apart by particle, if they cannot.
    """

    inputs: tuple[Role, ...] = (0,)
    outputs: tuple[Role, ...] = (0,)
    by_example: bool = True
    why_not: str = ""


def propose_roles(
    args: tuple, kwargs: dict[str, Any], batch_axes: Mapping[str, Role]
) -> tuple[int, list[tuple[Role, ...]]]:
    """The number of examples, and which tensors may carry them: what shapes propose.

    The first tensor does, along its first axis. Others of the same length may, or may not.

    Args:
        args: inputs by position.
        kwargs: inputs by name.
        batch_axes: what a caller says who knows better, by an argument's name or position.

    Raises:
        BellaError: there is no such tensor, or the batch is empty.
    """
    tensors: list[Tensor] = []
    told: list[Any] = []  # the axis, None, or "?" where nobody says
    for name, value in [*((str(i), x) for i, x in enumerate(args)), *kwargs.items()]:
        for x in tensors_of(value):
            tensors.append(x)
            told.append(batch_axes.get(name, "?"))
    leading = next((i for i, x in enumerate(tensors) if x.dim() and told[i] is not None), None)
    if leading is None:
        raise BellaError("A posterior needs at least one tensor whose first axis is the batch.")
    axis = 0 if told[leading] == "?" else told[leading]
    for x, role in zip(tensors, told, strict=True):
        if role not in ("?", None) and not 0 <= role < x.dim():
            raise BellaError(
                f"batch_axes names axis {role} of a tensor of shape {tuple(x.shape)}: count "
                "its axes from 0, or give None for one that is the same for any batch."
            )
    batch = tensors[leading].shape[axis]
    if not batch:
        raise BellaError("The batch is empty: give at least one example.")

    def proposed(others: bool) -> tuple[Role, ...]:
        roles = []
        for number, (x, role) in enumerate(zip(tensors, told, strict=True)):
            same = x.dim() > 0 and x.shape[0] == batch and (others or number == leading)
            roles.append((0 if same else None) if role == "?" else role)
        return tuple(roles)

    return batch, list(dict.fromkeys([proposed(True), proposed(False)]))


def role_of(one: Sequence[int], other: Sequence[int], batch: int, others: int) -> Role:
    """The axis along which a shape follows the batch.

    Args:
        one: a shape in a call on ``batch`` examples.
        other: the shape at the same place in a call on ``others`` examples.
        batch: number of examples.
        others: another number.

    Raises:
        MixedError: it follows along several axes, or not in proportion.
    """
    if len(one) != len(other):
        raise MixedError(f"has shape {tuple(one)} or {tuple(other)}")
    moved = [axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    if not moved:
        return None
    (axis, *more) = moved
    if more or one[axis] * others != other[axis] * batch:
        raise MixedError(
            f"has shape {tuple(one)} for {batch} examples and {tuple(other)} for {others}"
        )
    return axis


def roles_of(one: Any, other: Any, batch: int, others: int) -> tuple[Role, ...]:
    """The roles of all tensors of a tree, from the trees of two calls.

    Raises:
        MixedError: the trees have other tensors, or one of them mixes the examples.
    """
    a, b = tensors_of(one), tensors_of(other)
    if len(a) != len(b):
        raise MixedError(f"there are {len(a)} tensors for {batch} examples, {len(b)} for {others}")
    return tuple(role_of(x.shape, y.shape, batch, others) for x, y in zip(a, b, strict=True))


def map_roles(function: Callable[[Tensor, Role], Any], tree: Any, roles: Sequence[Role]) -> Any:
    """Apply ``function`` to every tensor of a tree and its role.

    Raises:
        MixedError: there are more tensors, or fewer, than roles.
    """
    rest = iter(roles)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        try:
            return function(leaf, next(rest))
        except StopIteration:
            raise MixedError(f"there are more than {len(roles)} tensors") from None

    mapped = map_leaves(one, tree)
    if next(rest, rest) is not rest:
        raise MixedError(f"there are fewer than {len(roles)} tensors")
    return mapped


def with_roles(tree: Any, roles: Sequence[Role]) -> Iterator[tuple[Tensor, Role]]:
    """Every tensor of a tree with its role; see `map_roles`."""
    found = tensors_of(tree)
    if len(found) != len(roles):
        raise MixedError(f"there are {len(found)} tensors where {len(roles)} were expected")
    return zip(found, roles, strict=True)


def examples(x: Tensor, role: Role, rows: Tensor, batch: int) -> Tensor:
    """The part of a tensor that belongs to some examples of a batch."""
    if role is None:
        return x
    each = x.shape[role] // batch
    if each == 1:
        return x.index_select(role, rows)
    return x.unflatten(role, (batch, each)).index_select(role, rows).flatten(role, role + 1)


def tolerance(*tensors: Tensor) -> float:
    """How far, relative to the largest value, rounding may part two ways to compute the same."""
    sizes = [torch.finfo(x.dtype).eps for x in tensors if x.is_floating_point()]
    eps = max(sizes, default=0.0)
    return 1e-9 if eps < 1e-10 else 1e-4 if eps < 1e-5 else 5e-2


def differ(one: Tensor, other: Tensor, slack: float | None = None) -> bool:
    """Whether two tensors differ by more than rounding; NaN and infinities equal themselves."""
    one, other = one.detach(), other.detach()
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return not torch.equal(one, other)
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return True
    if not bool(finite.all()):
        if not torch.equal(one[~finite].nan_to_num(0.5), other[~finite].nan_to_num(0.5)):
            return True
        one, other = one[finite], other[finite]
    if one.numel() == 0:
        return False
    size = max(float(one.abs().max()), float(other.abs().max()))
    wide = torch.promote_types(one.dtype, torch.float32)
    gap = float((one.to(wide) - other.to(wide)).abs().max())
    return gap > (tolerance(one) if slack is None else slack) * size


def any_differ(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether any of several pairs differ."""
    return any(differ(a, b) for a, b in zip(ones, others, strict=True))
