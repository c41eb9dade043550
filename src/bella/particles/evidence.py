"""What passes of one particle show, and what two of them say of the roles of tensors.

`bella.particles.proof` runs the passes; here nothing runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.particles.layer import ParticleLayer
from bella.particles.roles import (
    Layer,
    MixedError,
    Role,
    differ,
    role_of,
    roles_of,
    with_roles,
)
from bella.trees import tensors_of

REFUSALS = (BellaError, MixedError, RuntimeError, ValueError, IndexError, TypeError, KeyError)
"""What may go wrong in a pass that is only tried (but for a lack of memory)."""


class Seen:
    """What one pass of one particle shows.

    Attributes:
        outputs: the network's.
        calls: for each particle layer, the tensors of its calls' arguments and of what they return.
        dependent: particle layers whose rows may depend on the data.
    """

    def __init__(self) -> None:
        self.outputs: Any = None
        self.calls: dict[str, list[tuple[list[Tensor], list[Tensor]]]] = {}
        self.dependent: set[str] = set()


def independent(first: Seen, second: Seen, few: int, fewer: int) -> tuple[Role, ...]:
    """Roles of the outputs, if each example's are its own.

    Raises:
        MixedError: they are not.
    """
    try:
        roles = roles_of(first.outputs, second.outputs, few, fewer)
    except MixedError as mixed:
        raise MixedError(f"an output mixes the examples: it {mixed}") from None
    common = min(few, fewer)
    pairs = zip(tensors_of(first.outputs), tensors_of(second.outputs), roles, strict=True)
    for x, y, role in pairs:
        if role is not None:
            x, y = begin(x, role, few, common), begin(y, role, fewer, common)
        if differ(x, y):
            raise MixedError(
                "what an example gets depends on which others are in its batch, or their rows "
                "do not stand together"
            )
    return roles


def layers_of(
    layers: dict[str, ParticleLayer], first: Seen, second: Seen, few: int, fewer: int
) -> dict[str, Layer]:
    """What each particle layer meets, from two passes on other numbers of examples."""
    found = {}
    for name, layer in layers.items():
        calls, others = first.calls.get(name, []), second.calls.get(name, [])
        if name in first.dependent:
            found[name] = Layer(why_not=f"which rows {name} gets depends on the data")
            continue
        if len(calls) != len(others):
            found[name] = Layer(why_not=f"how often {name} runs depends on the number of examples")
            continue
        met = set()
        try:
            for (x, y), (x2, y2) in zip(calls, others, strict=True):
                roles = tuple(
                    role_of(a.shape, b.shape, few, fewer) for a, b in zip(x, x2, strict=True)
                )
                outputs = tuple(
                    role_of(a.shape, b.shape, few, fewer) for a, b in zip(y, y2, strict=True)
                )
                by_example = not layer.needs_examples or (
                    roles[0] == 0
                    and not differ(
                        begin(x[0], 0, few, min(few, fewer)),
                        begin(x2[0], 0, fewer, min(few, fewer)),
                    )
                )
                met.add(Layer(roles, outputs, by_example))
        except MixedError as mixed:
            found[name] = Layer(why_not=f"the input of {name} {mixed}", by_example=False)
            continue
        if not met:
            continue
        one, *more = met
        if not all(layer.by_example for layer in met):
            one = Layer(
                by_example=False,
                why_not=f"the rows that {name} gets are not one example after another",
            )
        elif more:
            one = Layer(why_not=f"{name} is called with inputs of several kinds")
        elif one.inputs[:1] != (0,):
            where = "no axis" if one.inputs[:1] in ((None,), ()) else f"axis {one.inputs[0]}"
            one = replace(
                one, why_not=f"the input of {name} has the examples on {where}, not the first"
            )
        found[name] = one
    return found


def not_foldable(layers: dict[str, Layer], first: Seen, other: Seen) -> str:
    """Why particle layers could not tell whose rows they hold; empty if they can."""
    for name, layer in layers.items():
        if layer.why_not:
            return layer.why_not
        shapes = [
            [[x.shape for x in call[0]] for call in seen.calls.get(name, [])]
            for seen in (first, other)
        ]
        if shapes[0] != shapes[1]:
            return f"the rows of {name} depend on the particle"
    return ""


def telling(inputs: Any, roles: Sequence[Role], batch: int, few: int) -> Tensor:
    """A few examples that show what the data may decide: shortest and longest masks come first."""
    wanted: list[int] = []
    for x, role in with_roles(inputs, roles):
        if role is not None and not x.is_floating_point() and not x.is_complex():
            sums = x.movedim(role, 0).reshape(x.shape[role], -1).long().sum(1)
            if len(sums) == batch:
                wanted = [int(sums.argmin()), *wanted, int(sums.argmax())]
    picked = list(dict.fromkeys([*wanted, *range(min(batch, few))]))[:few]
    return torch.tensor(sorted(picked))


def begin(x: Tensor, role: int, batch: int, common: int) -> Tensor:
    """The part of the first examples of a batch."""
    return x.narrow(role, 0, x.shape[role] // batch * common)


def split(outputs: Any, roles: Sequence[Role], width: int) -> list[list[Tensor]]:
    """Each output tensor's parts, one for each particle.

    Raises:
        MixedError: its rows are not so many particles'.
    """
    found = []
    tensors = tensors_of(outputs)
    if len(tensors) != len(roles):
        raise MixedError(f"there are {len(tensors)} outputs where {len(roles)} were expected")
    for x, role in zip(tensors, roles, strict=True):
        if role is None:
            found.append([x] * width)
        elif x.dim() <= role or x.shape[role] % width:
            raise MixedError(f"an output of shape {tuple(x.shape)} does not carry the particles")
        else:
            found.append(list(x.chunk(width, role)))
    return found


def clean(x: Tensor) -> Tensor:
    """Finite numbers in place of NaN and infinities: bad data prove nothing."""
    if not x.is_floating_point() or bool(x.isfinite().all()):
        return x
    return x.nan_to_num(0.0, 0.0, 0.0)


def short(error: Exception) -> str:
    """An error's first line."""
    return str(error).strip().split("\n")[0].rstrip(".")
