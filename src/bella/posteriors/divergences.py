"""Kullback-Leibler divergences in closed form, elementwise and in nats. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_gaussian(
    mean: Tensor, std: Tensor, prior_mean: Tensor | float, prior_std: Tensor | float
) -> Tensor:
    """KL(N(mean, std²) ‖ N(prior_mean, prior_std²)) of each element; arguments broadcast."""
    ratio = (std / prior_std).square()
    shift = ((mean - prior_mean) / prior_std).square()
    return (ratio + shift - 1 - ratio.log()) / 2


def kl_cauchy(
    location: Tensor, scale: Tensor, prior_location: Tensor | float, prior_scale: Tensor | float
) -> Tensor:
    """KL of two Cauchy distributions, of each element; arguments broadcast.

    With locations x0, x1 and scales g0, g1 it is log[((g0 + g1)² + (x0 - x1)²) / (4 g0 g1)]
    (Chyzak & Nielsen 2019), and symmetric.
    """
    spread = (scale + prior_scale).square() + (location - prior_location).square()
    return torch.log(spread / (4 * scale * prior_scale))
