"""The linear probe: logistic regression on a frozen network's features.

It is a row of every table, because whatever trains more has to beat it, and it is where the heads
of all other rows start (Kumar et al. 2022: probe first, then fine-tune).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bella.errors import BellaError, require
from bella.inputs import split
from bella.posterior import Posterior
from bella.predictive import Predictive

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
"""Inverse strengths of the L2 penalty on standardised features to choose from, on validation."""

Features = tuple[Tensor, Tensor]
"""Features (count, size) and labels (count,)."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features: logits = weight x + bias.

    Attributes:
        weight: (classes, size).
        bias: (classes,).
        validation_nll: of the strength that was chosen.
    """

    weight: Tensor
    bias: Tensor
    validation_nll: float

    def logits(self, features: Tensor) -> Tensor:
        """(1, count, classes): one particle's logits."""
        return (features @ self.weight.mT + self.bias).unsqueeze(0)

    def start(self, head: nn.Module) -> None:
        """Give a network's linear head these weights.

        Raises:
            BellaError: the head is no Linear of this shape.
        """
        if not isinstance(head, nn.Linear) or head.weight.shape != self.weight.shape:
            raise BellaError("A probe can start only a linear head that reads the probed features.")
        with torch.no_grad():
            head.weight.copy_(self.weight)
            head.bias.copy_(self.bias)


def fit_probe(train: Features, validation: Features) -> Probe:
    """The logistic regression whose strength is best on validation data."""
    linear = require("sklearn.linear_model", "fit")
    x, y = train
    scale = x.std(0).clamp_min(1e-6)
    probes = []
    for strength in STRENGTHS:
        model = linear.LogisticRegression(C=strength, max_iter=1000)
        model.fit((x / scale).numpy(), y.numpy())
        weight = torch.from_numpy(model.coef_).float() / scale
        bias = torch.from_numpy(model.intercept_).float()
        if len(weight) == 1:  # of two classes scikit-learn gives the difference of their logits
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        logits = (validation[0] @ weight.mT + bias).unsqueeze(0)
        probes.append(Probe(weight, bias, float(Predictive(logits).nll(validation[1]))))
    return min(probes, key=lambda probe: probe.validation_nll)


@torch.no_grad()
def head_inputs(posterior: Posterior, loader: DataLoader) -> Features:
    """What arrives at the head of a network whose changes are still zero: its frozen features."""
    head = list(posterior.layers().values())[-1]
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(1)))
    labels = []
    posterior.eval()
    try:
        for batch in loader:
            args, kwargs, y = split(batch)
            posterior(*args, **kwargs)
            labels.append(y)
    finally:
        handle.remove()
    return torch.cat(seen), torch.cat(labels)
