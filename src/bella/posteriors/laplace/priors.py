"""The precision of a Laplace approximation's prior: by marginal likelihood or by validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.inputs import split, to
from bella.particles.sober import evaluating

if TYPE_CHECKING:
    from bella.posteriors.laplace.posterior import LaplacePosterior

GRID = tuple(10 ** (k / 2) for k in range(-6, 11))
"""Precisions that validation tries: 0.001 to 100,000 in half decades."""


def by_marginal_likelihood(
    log_marginal_likelihood: Callable[[Tensor], Tensor],
    steps: int = 100,
    learning_rate: float = 0.1,
) -> float:
    """Climb the log marginal likelihood by Adam on log τ, from τ = 1.

    Args:
        log_marginal_likelihood: of τ.
        steps: number of steps.
        learning_rate: Adam's.

    Source:
        Yang et al. 2024, whose steps and learning rate these are.
    """
    log_tau = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([log_tau], lr=learning_rate)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            (-log_marginal_likelihood(log_tau.exp())).backward()
            optimizer.step()
    return float(log_tau.detach().exp())


def by_validation(
    posterior: LaplacePosterior,
    loader: Any,
    grid: tuple[float, ...] = GRID,
    draws: int = 32,
) -> float:
    """The precision of ``grid`` whose predictive has the least NLL.

    Args:
        posterior: its curvature taken.
        loader: of (inputs, labels), not the training data.
        grid: precisions to try, all with the same noise.
        draws: of the predictive, where it draws.

    Raises:
        BellaError: there are no data.
    """
    device = next(posterior.network.parameters()).device
    totals = [0.0] * len(grid)
    examples = 0
    with evaluating(posterior):
        for item in loader:
            args, kwargs, labels = to(split(item), device)
            examples += len(labels)
            tried = posterior.predictives(kwargs or args, list(grid), draws)
            for i, predictive in enumerate(tried):
                totals[i] += predictive.nll(labels) * len(labels)
    if not examples:
        raise BellaError("There is nothing to validate the prior precision on: no data.")
    return grid[min(range(len(grid)), key=totals.__getitem__)]
