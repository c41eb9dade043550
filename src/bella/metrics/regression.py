"""Figures of predicted numbers: pure functions of tensors.

A predictive is a mixture of Gaussians: means and variances (particles, *batch), and perhaps
weights that sum to 1 over the particles. Densities are in nats.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bella.errors import BellaError, require

Means = Float[Tensor, "particles *#batch"]
Numbers = Float[Tensor, "*#batch"]
Weights = Float[Tensor, "particles *#batch"] | None

LEVELS = tuple(k / 20 for k in range(1, 20))
"""Of the central intervals that `calibration_error` looks at: 5% to 95%."""

NODES = 64
"""Of the quadrature behind `mutual_information`."""


def check(mean: Numbers, y: Numbers) -> None:
    """Refuse predictions and numbers that do not belong together.

    Raises:
        BellaError: shapes that differ, no numbers, or values that are not finite.
    """
    if mean.shape != y.shape:
        raise BellaError(
            f"Predictions of shape {tuple(mean.shape)} and numbers of shape {tuple(y.shape)} must "
            "be the same examples."
        )
    if not y.numel():
        raise BellaError("There are no examples to measure: the data are empty.")
    if not (torch.isfinite(mean).all() and torch.isfinite(y).all()):
        raise BellaError("Predictions or labels are not finite: check the data and the training.")


# ------------------------------------------------------------ a mixture of Gaussians


def _log_weights(means: Means, weights: Weights) -> Tensor:
    if weights is None:
        return means.new_full(means.shape, -math.log(len(means)))
    return weights.to(means).log()


def log_density(y: Numbers, means: Means, variances: Means, weights: Weights = None) -> Numbers:
    """log p(y) of the mixture, by log-sum-exp."""
    each = -0.5 * (
        math.log(2 * math.pi) + variances.log() + (y.unsqueeze(0) - means).square() / variances
    )
    return torch.logsumexp(each + _log_weights(means, weights), 0)


def cdf(y: Numbers, means: Means, variances: Means, weights: Weights = None) -> Numbers:
    """P(Y <= y) of the mixture."""
    each = torch.special.ndtr((y.unsqueeze(0) - means) / variances.sqrt())
    return (_log_weights(means, weights).exp() * each).sum(0).clamp(0, 1)


def quantile(level: float, means: Means, variances: Means, weights: Weights = None) -> Numbers:
    """The y with P(Y <= y) = level, by bisection in float64 between the particles' own quantiles.

    Raises:
        BellaError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise BellaError(f"level={level}: give a number between 0 and 1.")
    dtype = means.dtype
    means, variances = means.double(), variances.double()
    own = means + variances.sqrt() * torch.special.ndtri(means.new_tensor(level))
    low, high = own.amin(0), own.amax(0)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle, means, variances, weights) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).to(dtype)


def mutual_information(means: Means, variances: Means, weights: Weights = None) -> Numbers:
    """mean_i KL(N_i || p) >= 0, in nats: what the particles dispute.

    Each expectation by Gauss-Hermite quadrature with `NODES` nodes, in float64.
    """
    nodes, quadrature = np.polynomial.hermite_e.hermegauss(NODES)
    wide, spread = means.double(), variances.double().sqrt()
    found = torch.zeros_like(wide)
    for node, weight in zip(nodes, quadrature / math.sqrt(2 * math.pi), strict=True):
        y = wide + spread * node  # (particles, *batch): of each particle its own point
        own = -0.5 * (math.log(2 * math.pi) + node**2) - spread.log()
        mixed = torch.stack([log_density(one, wide, spread.square(), weights) for one in y])
        found += weight * (own - mixed)
    mixture = _log_weights(wide, weights).exp()
    return (mixture * found).sum(0).clamp_min(0).to(means.dtype)


def total_variation(
    means: Means,
    variances: Means,
    other_means: Float[Tensor, "others *#batch"],
    other_variances: Float[Tensor, "others *#batch"],
    points: int = 400,
) -> float:
    """Mean over numbers of ½ ∫ |p(y) - q(y)| dy of two mixtures, in float64.

    By the trapezoidal rule between the outermost particles' 6 standard deviations.

    Args:
        means: of p, (particles, batch).
        variances: of p.
        other_means: of q, (other particles, batch).
        other_variances: of q.
        points: of the rule, for each number.

    Raises:
        BellaError: they are not of the same examples.
    """
    if means.shape[1:] != other_means.shape[1:] or not means[0].numel():
        raise BellaError(
            f"Predictives of shapes {tuple(means.shape[1:])} and {tuple(other_means.shape[1:])} "
            "must be of the same examples, and of at least one."
        )
    mixtures = [
        (m.double().flatten(1), v.double().expand_as(m).flatten(1))
        for m, v in ((means, variances), (other_means, other_variances))
    ]
    low = torch.stack([(m - 6 * v.sqrt()).amin(0) for m, v in mixtures]).amin(0)
    high = torch.stack([(m + 6 * v.sqrt()).amax(0) for m, v in mixtures]).amax(0)
    total = 0.0
    for number, (first, last) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        y = torch.linspace(first, last, points, dtype=torch.double, device=means.device)
        p, q = (
            log_density(y, m[:, number : number + 1], v[:, number : number + 1]).exp()
            for m, v in mixtures
        )
        total += torch.trapezoid((p - q).abs(), y).item() / 2
    return total / len(low)


# ------------------------------------------------------------ quality


def rmse(mean: Numbers, y: Numbers) -> float:
    """Root of the mean squared error, in the units of y."""
    check(mean, y)
    return (mean - y).double().square().mean().sqrt().item()


def mae(mean: Numbers, y: Numbers) -> float:
    """Mean absolute error, in the units of y."""
    check(mean, y)
    return (mean - y).double().abs().mean().item()


def r2(mean: Numbers, y: Numbers) -> float:
    """Share of the variance of y that the mean explains; NaN where y does not vary."""
    check(mean, y)
    wide = y.double()
    whole = (wide - wide.mean()).square().sum()
    if not whole > 0:
        return math.nan
    return (1 - (mean.double() - wide).square().sum() / whole).item()


def crps(y: Numbers, means: Means, variances: Means, weights: Weights = None) -> float:
    """Mean continuous ranked probability score of the mixture, in the units of y.

    Source:
        Grimit et al. 2006, The continuous ranked probability score for circular variables, eq. 3-4
        (a mixture of Gaussians in closed form).
    """
    means, variances = means.double(), variances.double()
    weight = _log_weights(means, weights).exp()
    near = (weight * _absolute(y.double() - means, variances)).sum(0)
    between = torch.zeros_like(near)
    for i in range(len(means)):
        apart = _absolute(means[i] - means, variances[i] + variances)
        between += weight[i] * (weight * apart).sum(0)
    return (near - between / 2).mean().item()


def _absolute(mean: Tensor, variance: Tensor) -> Tensor:
    """E|Z| of a Gaussian Z."""
    std = variance.sqrt()
    z = mean / std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return mean * (2 * torch.special.ndtr(z) - 1) + 2 * std * density


# ------------------------------------------------------------ calibration of intervals


def coverage(ranks: Numbers, level: float) -> float:
    """Share of the numbers inside their central interval of a level.

    Args:
        ranks: P(Y <= y) of each number under its predictive (`cdf`).
        level: of the interval, in 0..1; the share of a calibrated predictive.
    """
    return ((ranks.double() - 0.5).abs() <= level / 2).double().mean().item()


def calibration_error(ranks: Numbers) -> float:
    """Mean over `LEVELS` of the distance between a central interval's level and its coverage.

    Args:
        ranks: see `coverage`.

    Source:
        Kuleshov, Fenner and Ermon 2018, Accurate uncertainties for deep learning using calibrated
        regression, section 3.5, with the distance for the square and central intervals.
    """
    if not ranks.numel():
        raise BellaError("There are no examples to measure: the data are empty.")
    gaps = [abs(coverage(ranks, level) - level) for level in LEVELS]
    return sum(gaps) / len(gaps)


def spearman(a: Float[Tensor, " batch"], b: Float[Tensor, " batch"]) -> float:
    """Rank correlation, such as of predicted spread and error; NaN where one is constant."""
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return math.nan
    stats = require("scipy.stats", "fit")
    return float(stats.spearmanr(a.double().numpy(), b.double().numpy()).statistic)
