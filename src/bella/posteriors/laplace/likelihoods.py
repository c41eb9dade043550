"""Likelihoods of a network's outputs: their value, and a root of their curvature in the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from bella.metrics import check_labels


class Likelihood(NamedTuple):
    """One likelihood p(y | f).

    Attributes:
        log: (f, y) -> Σ log p(y | f) over the batch, in nats.
        root: f -> R (batch, outputs, columns) with R Rᵀ = -∇²_f log p(y | f).
    """

    log: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor], Tensor]


def softmax_log(f: Float[Tensor, "batch classes"], labels: Integer[Tensor, " batch"]) -> Tensor:
    """Of class numbers under logits.

    Raises:
        BellaError: a label is out of range.
    """
    check_labels(labels, f.shape[-1])
    return f.log_softmax(-1).gather(-1, labels.long().unsqueeze(-1)).sum()


def softmax_root(f: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes classes"]:
    """R = diag(√p) - p √pᵀ, for R Rᵀ = diag(p) - p pᵀ."""
    p = f.softmax(-1)
    return torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)


def gaussian_log(f: Float[Tensor, "batch outputs"], targets: Float[Tensor, "*shape"]) -> Tensor:
    """Of real targets, with noise of variance 1."""
    difference = targets.reshape(f.shape) - f
    return -0.5 * (difference.square().sum() + f.numel() * math.log(2 * math.pi))


def gaussian_root(f: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs outputs"]:
    """The unit matrix."""
    return torch.diag_embed(torch.ones_like(f))


LIKELIHOODS = {
    "softmax": Likelihood(softmax_log, softmax_root),
    "gaussian": Likelihood(gaussian_log, gaussian_root),
}
"""By the name that `bella.laplace` takes."""
