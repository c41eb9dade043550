"""Temperature scaling: the cheap baseline that a Bayesian method has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from bella.errors import BellaError
from bella.metrics import check_labels, regression
from bella.prediction.numbers import GaussianPredictive
from bella.prediction.predictive import IGNORED
from bella.prediction.said import Said

COLDEST, HOTTEST = 0.01, 100.0
"""Bounds of the temperature: without errors among the labels the best one would be 0."""

SD = 0.2
"""Standard deviation of the prior on log T, where there is one: on a hundred examples the plain
minimum is mostly noise, on ten thousand the prior is not felt."""


@torch.inference_mode(False)
@torch.enable_grad()
def fit_temperature(
    logits: Float[Tensor, "*particles_batch classes"] | Said,
    labels: Num[Tensor, "*batch"],
    *,
    sd: float | None = None,
) -> float:
    """The temperature T that minimises the NLL of softmax(logits / T) on validation data.

    With a prior, the maximum a posteriori: min over T of Σ_n NLL_n + (log T)² / (2 sd²).
    L-BFGS on log T in float64, T from 0.01 to 100. Of numbers every variance is multiplied by T:
    in both cases each particle's distribution is taken to the power 1 / T.

    Args:
        logits: of one network or of a pool, (batch, ..., classes), or of every particle,
            (particles, batch, ..., classes): then all are divided by the same T and their
            probabilities averaged. Or a predictive; of numbers it has to be one.
        labels: class numbers (batch, ...); what has the label -100 does not count. Or numbers.
        sd: standard deviation of log T before the data, log T ~ N(0, sd²); ``None`` for no prior.

    Source:
        Guo et al. 2017, On calibration of modern neural networks, section 4.2; Laves et al. 2020,
        Well-calibrated regression uncertainty in medical imaging, for numbers.

    Raises:
        BellaError: logits that are not finite, labels of another shape or out of range, no data, or
            an ``sd`` that is not above 0.
    """
    if sd is not None and not sd > 0:
        raise BellaError(f"sd={sd}: give the standard deviation of log T, a number above 0.")
    if isinstance(logits, GaussianPredictive):
        return _of_numbers(logits, labels, sd)
    logits = logits.logits if isinstance(logits, Said) else logits
    own = labels.dim() + 1
    fit = logits.dim() in (own, own + 1) and logits.shape[-own:-1] == labels.shape
    if not (fit and own > 1 and bool((labels.long() != IGNORED).any())):
        raise BellaError(
            f"Logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} are "
            "not ([particles,] batch, ..., classes) and (batch, ...) with at least one example."
        )
    if not torch.isfinite(logits).all():
        raise BellaError("Logits are not finite: check the network's inputs and training.")
    check_labels(labels, logits.shape[-1], IGNORED)
    # A copy, because what was predicted in inference mode cannot enter autograd.
    scores = logits.detach().to("cpu", torch.double, copy=True)
    target = labels.to("cpu", torch.long, copy=True).flatten()
    scores = scores.reshape(-1, len(target), logits.shape[-1])[:, target != IGNORED]
    target = target[target != IGNORED]

    def loss(temperature: Tensor) -> Tensor:
        log_probs = torch.log_softmax(scores / temperature, -1).logsumexp(0)
        return F.nll_loss(log_probs, target)

    return _least(loss, sd, len(target))


def _of_numbers(predictive: GaussianPredictive, labels: Tensor, sd: float | None) -> float:
    counted, y = predictive.counted(labels)
    regression.check(counted.mean, y)
    mean, variance = counted.particle_means.double(), counted.particle_variances.double()
    weights = counted.weights

    def loss(temperature: Tensor) -> Tensor:
        return -regression.log_density(y.double(), mean, temperature * variance, weights).mean()

    return _least(loss, sd, len(y))


def _least(loss: Callable[[Tensor], Tensor], sd: float | None, count: int) -> float:
    """The temperature of the least mean loss over so many labels, with its prior."""
    precision = 0.0 if sd is None else 1 / (2 * sd**2 * count)
    log_t = torch.zeros((), dtype=torch.double, requires_grad=True)

    def temperature() -> Tensor:
        return log_t.clamp(math.log(COLDEST), math.log(HOTTEST)).exp()

    minimise(lambda: loss(temperature()) + precision * log_t.square(), log_t)
    return temperature().item()


def minimise(loss: Callable[[], Tensor], over: Tensor) -> None:
    """Move a leaf tensor to where a smooth loss is least: L-BFGS with a line search."""
    optimizer = torch.optim.LBFGS(
        [over],
        max_iter=100,
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
