"""The outputs of several particles as one tree, its tensors shaped (particles, batch, ...)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.particles.roles import MixedError, Role
from bella.trees import PLAIN, leaves_of, map_leaves


def unfold(outputs: Any, roles: tuple[Role, ...], width: int) -> Any:
    """Give every tensor of folded outputs its particle axis: (particles, batch, ...).

    Raises:
        MixedError: the outputs are not what the proof met.
    """
    rest = iter(roles)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return plain(leaf)
        role = next(rest, -1)
        if role is None:
            return leaf.expand(width, *leaf.shape)
        if role < 0 or leaf.dim() <= role or leaf.shape[role] % width:
            raise MixedError(f"an output of shape {tuple(leaf.shape)} does not carry the particles")
        split = leaf.unflatten(role, (width, leaf.shape[role] // width))
        return split if role == 0 else split.movedim(role, 0)

    unfolded = map_leaves(one, outputs)
    if next(rest, rest) is not rest:
        raise MixedError("there are fewer outputs than in the proof")
    return unfolded


def stack(outputs: list[Any]) -> Any:
    """The outputs of several particles as one tree, its tensors (particles, ...).

    Raises:
        BellaError: they differ in kind or shape.
    """
    if len(outputs) == 1:
        return map_leaves(
            lambda x: x.unsqueeze(0) if isinstance(x, Tensor) else plain(x), outputs[0]
        )
    columns = [leaves_of(output) for output in outputs]
    joined = []
    for column in zip(*columns, strict=False):
        shapes = {x.shape if isinstance(x, Tensor) else type(x) for x in column}
        if len(shapes) > 1 or len({len(c) for c in columns}) > 1:
            raise BellaError(
                "The particles' outputs have different shapes or kinds, so they cannot be stacked: "
                f"{', '.join(str(shape) for shape in shapes)}. Call posterior.particle(i) for each."
            )
        tensor = isinstance(column[0], Tensor)
        joined.append(torch.stack(column) if tensor else plain(column[0]))
    rest = iter(joined)
    return map_leaves(lambda _: next(rest), outputs[0])


def plain(leaf: Any) -> Any:
    """An output that is no tensor: a plain value as it is, and nothing in place of an object.

    A key-value cache has rows of its own making; nobody could tell them apart by particle.
    """
    return leaf if isinstance(leaf, PLAIN) else None
