"""What a Gaussian weight N(μ, σ²) is worth: criteria of removal (Li et al. 2024, section 4.2).

Pure functions of (mean, std), elementwise; the active weights of the smallest value are removed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

CERTAIN = 6.0
"""Ratio |μ|/σ beyond which |θ| and ±θ are the same to 1e-9, and float32 loses the variance."""


def magnitude(mean: Tensor, std: Tensor) -> Tensor:
    """|μ|."""
    return mean.abs()


def snr(mean: Tensor, std: Tensor) -> Tensor:
    """|μ| / σ."""
    return mean.abs() / std


def mean_abs(mean: Tensor, std: Tensor) -> Tensor:
    """E|θ| = μ erf(μ / (σ√2)) + σ √(2/π) exp(-μ² / 2σ²)."""
    return std * _folded_mean(mean.abs() / std)


def snr_abs(mean: Tensor, std: Tensor) -> Tensor:
    """E|θ| / √Var|θ|.

    With r = |μ|/σ and m = E|θ|/σ it is m / √(1 + r² - m²), and r itself beyond `CERTAIN`: there the
    difference cancels in float32 and would remove the most certain weights.
    """
    ratio = mean.abs() / std
    m = _folded_mean(ratio)
    variance = 1 + ratio.square() - m.square()
    return torch.where(ratio > CERTAIN, ratio, m / variance.clamp_min(1e-12).sqrt())


def mean_exp_abs(mean: Tensor, std: Tensor, exponent: float = 1.0) -> Tensor:
    """E exp(λ|θ|), λ the exponent; infinite where it overflows float64."""
    return log_mean_exp_abs(mean, std, exponent).exp()


def snr_exp_abs(mean: Tensor, std: Tensor, exponent: float = 1.0) -> Tensor:
    """E e^{λ|θ|} / √Var e^{λ|θ|} = (E e^{2λ|θ|} / (E e^{λ|θ|})² - 1)^(-1/2), in float64.

    It ranks by σ above all: with the same σ, it falls as |μ| rises, from 1 / (0.60 λσ) to
    1 / (λσ) where λσ << 1.
    """
    first = log_mean_exp_abs(mean, std, exponent)
    second = log_mean_exp_abs(mean, std, 2 * exponent)
    return torch.expm1(second - 2 * first).clamp_min(0).rsqrt()


def log_mean_exp_abs(mean: Tensor, std: Tensor, exponent: float) -> Tensor:
    """log E exp(λ|θ|) in float64.

    E e^{λ|θ|} = e^{λ²σ²/2} [e^{λμ} Φ(μ/σ + λσ) + e^{-λμ} Φ(-μ/σ + λσ)].
    """
    mean, std = mean.double(), std.double()
    ratio, shift = mean / std, exponent * std
    up = exponent * mean + torch.special.log_ndtr(ratio + shift)
    down = -exponent * mean + torch.special.log_ndtr(shift - ratio)
    return shift.square() / 2 + torch.logaddexp(up, down)


def _folded_mean(ratio: Tensor) -> Tensor:
    """E|θ| / σ for the ratio |μ| / σ."""
    density = torch.exp(-ratio.square() / 2)
    return ratio * torch.erf(ratio / math.sqrt(2)) + math.sqrt(2 / math.pi) * density


Criterion = Callable[[Tensor, Tensor], Tensor]

CRITERIA: dict[str, Callable[..., Tensor]] = {
    "snr_abs": snr_abs,
    "mean_abs": mean_abs,
    "magnitude": magnitude,
    "snr": snr,
    "mean_exp_abs": mean_exp_abs,
    "snr_exp_abs": snr_exp_abs,
}
"""Criteria by name."""


def by_name(name: str, exponent: float = 1.0) -> Criterion:
    """A criterion of `CRITERIA`; ``exponent`` is the λ of those that have one."""
    criterion = CRITERIA[name]
    if criterion in (mean_exp_abs, snr_exp_abs):
        return functools.partial(criterion, exponent=exponent)
    return criterion
