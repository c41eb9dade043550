"""What several tests share: small networks, their dense weights, and dense formulas."""

from __future__ import annotations

import torch
from torch import nn

import bella


def mlp(seed: int = 1, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def adapted(network: nn.Module | None = None, particles: int = 4, **options) -> bella.Posterior:
    """A small posterior whose particles differ."""
    options = {"rank": 2, "target_modules": ("0", "2"), "b_std": 0.5, "alpha": 3} | options
    return bella.low_rank(network or mlp(), particles, **options)


def batch(rows: int = 8, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=generator)


def changes(posterior: bella.Posterior) -> list[torch.Tensor]:
    """Δ of every low-rank layer, (particles, out, in)."""
    layers = [layer for layer in posterior.layers().values() if hasattr(layer, "change")]
    n = posterior.particles
    return [torch.stack([layer.change(i) for i in range(n)]) for layer in layers]


def pairwise(values: torch.Tensor) -> torch.Tensor:
    """Square distances of all pairs, from the dense vectors."""
    flat = values.flatten(1)
    return (flat[:, None] - flat[None]).square().sum(-1)


def off_diagonal_median(d2: torch.Tensor) -> torch.Tensor:
    n = len(d2)
    rows, columns = torch.triu_indices(n, n, 1)
    return d2[rows, columns].quantile(0.5)


def gradients(posterior: bella.Posterior) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in posterior.stacked_parameters().items()}
