"""Temperature scaling: the cheap baseline that a Bayesian method has to beat."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from bella.errors import BellaError
from bella.metrics import check_labels

COLDEST, HOTTEST = 0.01, 100.0
"""Bounds of the temperature: without errors among the labels the best one would be 0."""


@torch.inference_mode(False)
@torch.enable_grad()
def fit_temperature(
    logits: Float[Tensor, "*particles batch classes"], labels: Integer[Tensor, " batch"]
) -> float:
    """The temperature T that minimises the NLL of softmax(logits / T) on validation data.

    L-BFGS on log T in float64, T from 0.01 to 100.

    Args:
        logits: of one network, (batch, classes), or of every particle, (particles, batch, classes):
            then all are divided by the same T and their probabilities averaged.
        labels: class numbers.

    Source:
        Guo et al. 2017, On calibration of modern neural networks, section 4.2.

    Raises:
        BellaError: logits that are not finite, labels of another shape or out of range, no data.
    """
    if logits.dim() not in (2, 3) or labels.shape != logits.shape[-2:-1] or not len(labels):
        raise BellaError(
            f"Logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} are "
            "not ([particles,] batch, classes) and (batch,) with at least one example."
        )
    if not torch.isfinite(logits).all():
        raise BellaError("Logits are not finite: check the network's inputs and training.")
    check_labels(labels, logits.shape[-1])
    # A copy, because what was predicted in inference mode cannot enter autograd.
    scores = logits.detach().to("cpu", torch.double, copy=True).view(-1, *logits.shape[-2:])
    target = labels.to("cpu", torch.long, copy=True)
    log_t = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_t],
        max_iter=100,
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def temperature() -> Tensor:
        return log_t.clamp(math.log(COLDEST), math.log(HOTTEST)).exp()

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_probs = torch.log_softmax(scores / temperature(), -1).logsumexp(0)
        loss = F.nll_loss(log_probs, target)
        loss.backward()
        return loss

    optimizer.step(closure)
    return temperature().item()
