"""Temperature scaling: the cheap baseline that a Bayesian method has to beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bella.predictive import check_labels


def fit_temperature(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> float:
    """The temperature T > 0 that minimises the NLL of logits / T, on validation data.

    The NLL is convex in 1 / T; Newton-type steps on log T in float64, within [0.01, 100].

    Source:
        Guo et al. 2017, On calibration of modern neural networks.

    Raises:
        BellaError: a label is out of range.
    """
    check_labels(labels, logits.shape[-1])
    logits = logits.detach().double()
    log_t = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.clamp(-4.6, 4.6).exp(), labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return float(log_t.detach().clamp(-4.6, 4.6).exp())
