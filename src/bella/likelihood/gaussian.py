"""``gaussian``: numbers, each with a mean and a variance.

The variance is one of three: what the network says of each example (a second output, its log),
what is learned, one for all (`with_variance`), or a number that the caller knows.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bella import metrics
from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.likelihood.base import EXIST, IGNORED, Likelihood


class Gaussian(Likelihood):
    """½ log 2π + ½ s + ½ (y - μ)² e^-s, with μ the mean and s the log variance.

    Targets that are NaN count nowhere. Foreign data without labels may have infinite ones.

    Args:
        variance: of all numbers, if it is known: the outputs are then the means alone. ``None``:
            the first half of the outputs are the means, the second the log variances.

    Raises:
        BellaError: the variance is not above 0.

    Source:
        Nix and Weigend 1994, Estimating the mean and variance of the target probability
        distribution.
    """

    name: ClassVar[str] = "gaussian"
    of_classes: ClassVar[bool] = False
    several: ClassVar[bool] = True

    def __init__(self, variance: float | None = None):
        if variance is not None and not 0 < variance < math.inf:
            raise BellaError(f"variance={variance}: give a number above 0.")
        self.variance = variance

    def targets(self, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """The numbers, in float32 or better.

        Raises:
            BellaError: no tensor of numbers.
        """
        if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_complex():
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise BellaError(f"Labels are {kind}: give numbers as a tensor; {EXIST}.")
        return metrics.precise(labels) if labels.is_floating_point() else labels.float()

    def counted(self, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """What is a number."""
        return ~targets.isnan()

    def scores(
        self, logits: Tensor, outputs: Any, labels: Tensor | None, axis: ClassAxis
    ) -> Tensor:
        """Mean and log variance of each number: (particles, batch, ..., numbers, 2), and of one
        number (particles, batch, ..., 2).

        Raises:
            BellaError: there are no two outputs for each number.
        """
        if logits.dim() < 3:
            raise BellaError(
                f"Outputs of shape {tuple(logits.shape)} must be (particles, batch, ..., outputs)."
            )
        values = metrics.precise(logits)
        if self.variance is not None:
            mean, spread = values, torch.full_like(values, math.log(self.variance))
        else:
            if values.shape[-1] % 2:
                raise BellaError(
                    f"The network has {values.shape[-1]} output{'s'[: values.shape[-1] != 1]} an "
                    "example, and a Gaussian takes two for each number, its mean and its log "
                    "variance: give the head twice as many, let bella.with_variance learn one "
                    "variance for all, or say likelihood=bella.likelihood.Gaussian(variance=...)."
                )
            mean, spread = values.chunk(2, -1)
        if mean.shape[-1] == 1:
            mean, spread = mean.squeeze(-1), spread.squeeze(-1)
        return torch.stack((mean, spread), -1)

    def losses(self, scores: Tensor, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """Of each number."""
        mean, spread = scores.unbind(-1)
        here = ~targets.isnan()
        square = torch.where(here, targets - mean, 0.0).square()
        each = 0.5 * (math.log(2 * math.pi) + spread + square * (-spread).exp())
        return torch.where(here, each, 0.0)

    def misfit(self, targets: Tensor, scores: Tensor) -> str:
        """In a sentence that targets do not fit the scores."""
        return (
            f"Labels of shape {tuple(targets.shape)} do not fit the means of shape "
            f"{tuple(scores.shape[1:-1])} of each particle: the network has two outputs for each "
            "number, its mean and its log variance, so give the head twice as many as numbers."
        )

    def root(self, outputs: Tensor) -> Tensor:
        """Of means with a known variance σ² the unit matrix over σ; of means and log variances
        diag(e^-s/2, √½): the Fisher matrix of (μ, s) is diag(e^-s, ½)."""
        if self.variance is not None:
            return torch.diag_embed(torch.full_like(outputs, self.variance**-0.5))
        _, spread = outputs.chunk(2, -1)
        return torch.diag_embed(
            torch.cat(((-spread / 2).exp(), torch.full_like(spread, 0.5**0.5)), -1)
        )


class WithVariance(nn.Module):
    """A head for means with one learned log variance a number, for all examples.

    Args:
        head: from features to means (..., numbers).
        numbers: how many.
        log_variance: at the start.
    """

    def __init__(self, head: nn.Module, numbers: int, log_variance: float = 0.0):
        super().__init__()
        self.head = head
        self.log_variance = nn.Parameter(torch.full((numbers,), float(log_variance)))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Means and log variances, (..., 2 numbers)."""
        mean = self.head(*args, **kwargs)
        return torch.cat((mean, self.log_variance.to(mean).expand_as(mean)), -1)


def with_variance(network: nn.Module, head: str, *, log_variance: float = 0.0) -> nn.Module:
    """Let a network that predicts numbers learn one variance for all examples.

    Its head answers with the log variance beside each mean. Named among ``modules_to_save`` the
    head is each particle's own, and so is the variance. The network is changed in place, and marked
    as one of numbers (`likelihood_of`).

    Args:
        network: it ends in the head.
        head: name of the Linear that gives the means.
        log_variance: at the start; 0 suits numbers that were scaled to a variance of 1.

    Returns:
        The network.

    Raises:
        BellaError: there is no such head.
    """
    try:
        module = network.get_submodule(head)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise BellaError(
            f"head={head!r} is no Linear layer of {type(network).__name__}: name the one that "
            "gives the means."
        )
    ended = WithVariance(module, module.out_features, log_variance)
    network.set_submodule(head, ended.to(module.weight.device, module.weight.dtype))
    network.likelihood = "gaussian"  # type: ignore[assignment]
    return network
