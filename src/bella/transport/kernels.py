"""Kernels of a square distance, their slopes, and bandwidths.

A kernel takes d2 and a width h (σ²) and returns k and its slope -2 ∂k/∂d2, with which
∇_i k(i, j) = -slope_ij (θ_i - θ_j).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bella.errors import BellaError, nearest

Pairs = Float[Tensor, "*layers particles particles"]
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def rbf(d2: Pairs, h: Tensor) -> tuple[Pairs, Pairs]:
    """k = exp(-d² / 2h)."""
    k = torch.exp(-d2 / (2 * h))
    return k, k / h


def imq(d2: Pairs, h: Tensor) -> tuple[Pairs, Pairs]:
    """Inverse multiquadric, k = (1 + d² / 2h)^-½ (Gorham & Mackey 2017)."""
    base = 1 + d2 / (2 * h)
    return base**-0.5, base**-1.5 / (2 * h)


def laplace(d2: Pairs, h: Tensor) -> tuple[Pairs, Pairs]:
    """k = exp(-d / √h). Its slope grows like 1/d near 0, where no direction is defined."""
    d = d2.sqrt()
    k = torch.exp(-d / h.sqrt())
    return k, k / (h.sqrt() * d.clamp_min(torch.finfo(d.dtype).eps ** 0.5))


KERNELS: dict[str, Kernel] = {"rbf": rbf, "imq": imq, "laplace": laplace}


def kernel_named(name: str) -> Kernel:
    """A kernel by its name.

    Raises:
        BellaError: there is none of that name.
    """
    if name not in KERNELS:
        raise BellaError(f"kernel={name!r} is unknown: choose {nearest(name, KERNELS)}.")
    return KERNELS[name]


def median(d2: Pairs) -> Float[Tensor, "*layers 1 1"]:
    """Median of the off-diagonal square distances; 1 for a single particle."""
    n = d2.shape[-1]
    if n == 1:
        return torch.ones_like(d2)
    rows, columns = torch.triu_indices(n, n, 1, device=d2.device)
    pairs = d2[..., rows, columns].sort(-1).values
    count = pairs.shape[-1]
    middle = (pairs[..., (count - 1) // 2] + pairs[..., count // 2]) / 2
    return middle[..., None, None]


def bandwidth(d2: Pairs, rule: str | float, floor: float) -> Float[Tensor, "*layers 1 1"]:
    """The width h = σ² by a rule.

    Args:
        d2: square distances.
        rule: ``"median"`` of the square distances; ``"liu-wang"``, median / (2 log(n + 1)), with
            which Σ_j k_ij is about 1 (Liu & Wang 2016); or a number, σ itself.
        floor: the smallest width; near the common start of all particles the repulsion would grow
            like 1 / distance without it.

    Raises:
        BellaError: an unknown rule or a number that is not positive.
    """
    if isinstance(rule, int | float) and rule > 0:
        return torch.full_like(d2[..., :1, :1], float(rule) ** 2)
    if rule == "median":
        return median(d2).clamp_min(floor)
    if rule == "liu-wang":
        return (median(d2) / (2 * math.log(d2.shape[-1] + 1))).clamp_min(floor)
    raise BellaError(f"bandwidth={rule!r}: choose 'median', 'liu-wang' or a positive number.")
