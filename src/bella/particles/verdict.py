"""A way to run particles against the truth, the passes of one particle each.

`bella.particles.proof` says which ways, and runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from bella.particles.evidence import REFUSALS, short, split
from bella.particles.roles import Role, any_differ, differ
from bella.particles.sober import Guard, seed_all
from bella.trees import tensors_of

DECIDES = "something of the shared part decides past the entrance"
"""Why nothing is shared: the examples of a proof may not be those on which it decides otherwise."""


def compare(
    run: Callable[[tuple[int, ...], float], Any],
    truths: tuple[Any, Any],
    roles: tuple[Role, ...],
    *,
    twice: bool = True,
    held: bool = False,
) -> str:
    """Why a way to run two particles differs from the truth; empty if it does not.

    Args:
        run: runs particles of these variants with that value of placeholders.
        truths: the outputs of the first and of the second one alone.
        roles: of the outputs.
        twice: whether to change the second particle as well.
        held: whether it runs from what a first half held, with placeholders for the rest.
    """
    found = []
    decided: list[bool] = []
    try:
        for variants, fill in (((0, 1), math.nan), ((0, 2), 1e4))[: 1 + twice]:
            seed_all()
            with Guard(lambda: decided.append(held)):
                found.append(split(run(variants, fill), roles, 2))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return short(error)
    if any(decided):
        return DECIDES
    both = zip(*(tensors_of(truth) for truth in truths), strict=True)
    told = False
    for out, truth in zip(found[0], both, strict=True):
        told |= differ(*truth)
        if any_differ(out, truth):
            return "folded, a particle's outputs are not those of its own pass"
    if not told:
        return "the particles make no difference to the outputs of these examples"
    if twice and any(differ(a[0], b[0], 1e-7) for a, b in zip(*found, strict=True)):
        return "folded, a particle's outputs depend on another particle"
    return ""


def compare_alone(run: Callable[[], Any], truth: Any) -> str:
    """Why a second half of one particle differs from its whole pass; empty if it does not."""
    seed_all()
    decided: list[bool] = []
    try:
        with Guard(lambda: decided.append(True)):
            outputs = run()
        if decided:
            return DECIDES
        if any_differ(tensors_of(outputs), tensors_of(truth)):
            return "something of the shared part is used past the entrance"
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return short(error)
    return ""
