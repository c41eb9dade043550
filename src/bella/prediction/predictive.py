"""What particles say together: the predictive distribution and its uncertainties.

p(y | x) = mean_i p_i(y | x)        (or, by choice, the softmax of the mean logits)
total uncertainty   H[p]            expected entropy   mean_i H[p_i]   (aleatoric)
mutual information  H[p] - mean_i H[p_i] >= 0                          (epistemic)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from bella import metrics
from bella.errors import BellaError

Average = Literal["probs", "logits"]


@dataclass(frozen=True, eq=False)
class Predictive:
    """The predictive distribution of a batch, from every particle's logits.

    Attributes:
        logits: (particles, batch, classes), in float32 or better.
        average: ``probs``: the mean of the particles' probabilities; ``logits``: the softmax of
            their mean logits. Never mix the two in one table.
        weights: what each particle counts for each example, (particles, batch) with a sum of 1; 0
            for those that were skipped. ``None``: all ran on all and count the same.

    Raises:
        BellaError: logits of another shape, or not finite.
    """

    logits: Float[Tensor, "particles batch classes"]
    average: Average = "probs"
    weights: metrics.Weights = None

    def __post_init__(self) -> None:
        if self.logits.dim() != 3:
            raise BellaError(
                f"Logits of shape {tuple(self.logits.shape)} are not (particles, batch, classes)."
            )
        if self.average not in ("probs", "logits"):
            raise BellaError(f"average={self.average!r}: choose 'probs' or 'logits'.")
        object.__setattr__(self, "logits", metrics.precise(self.logits))
        if not torch.isfinite(self.logits).all():
            raise BellaError(
                "The network's logits are not finite: are the inputs, and did training converge?"
            )

    @cached_property
    def particle_log_probs(self) -> Float[Tensor, "particles batch classes"]:
        """log p_i(y | x)."""
        return torch.log_softmax(self.logits, -1)

    @cached_property
    def log_probs(self) -> Float[Tensor, "batch classes"]:
        """log p(y | x), by log-mean-exp."""
        if self.average == "logits":
            return torch.log_softmax(metrics.over_particles(self.logits, self.weights), -1)
        if self.weights is None:
            return torch.logsumexp(self.particle_log_probs, 0) - math.log(self.logits.shape[0])
        return torch.logsumexp(self.particle_log_probs + self.weights.log().unsqueeze(-1), 0)

    @cached_property
    def particle_probs(self) -> Float[Tensor, "particles batch classes"]:
        """p_i(y | x)."""
        return self.particle_log_probs.exp()

    @cached_property
    def probs(self) -> Float[Tensor, "batch classes"]:
        """p(y | x)."""
        return self.log_probs.exp()

    @cached_property
    def entropy(self) -> Float[Tensor, " batch"]:
        """H[p], total uncertainty in nats."""
        return metrics.entropy(self.probs)

    @cached_property
    def expected_entropy(self) -> Float[Tensor, " batch"]:
        """mean_i H[p_i], in nats."""
        return metrics.expected_entropy(self.particle_probs, self.weights)

    @cached_property
    def mutual_information(self) -> Float[Tensor, " batch"]:
        """H[mean_i p_i] - mean_i H[p_i] >= 0, in nats: what the particles dispute.

        With averaged logits too: H[p] - mean_i H[p_i] may be negative there and is no information.
        """
        return metrics.mutual_information(self.particle_probs, self.weights)

    @property
    def predictions(self) -> Int[Tensor, " batch"]:
        """The most probable classes."""
        return self.log_probs.argmax(-1)

    @property
    def confidence(self) -> Float[Tensor, " batch"]:
        """The largest probability of each example."""
        return self.probs.amax(-1)

    @property
    def saved(self) -> float:
        """Share of the passes of a particle over an example that were skipped."""
        return 0.0 if self.weights is None else (self.weights == 0).double().mean().item()

    def stopped(self, bound: float, first: int = 2) -> Predictive:
        """What `predict` says with ``stop=bound``, told from what all particles said."""
        early = agree(self.logits[:first], bound)
        if first >= len(self.logits) or not early.any():
            return self
        return replace(self, weights=early_weights(self.logits, early, first))

    def nll(self, labels: Integer[Tensor, " batch"]) -> float:
        """Mean negative log-likelihood of the predictive, in nats.

        Raises:
            BellaError: labels of another shape, or out of range.
        """
        return metrics.nll(self.log_probs, labels)

    def tempered(self, temperature: float) -> Predictive:
        """The same logits divided by a temperature (see `bella.evaluation.temperature`).

        Raises:
            BellaError: the temperature is not above 0.
        """
        if not temperature > 0:
            raise BellaError(f"temperature={temperature}: give a number above 0.")
        return replace(self, logits=self.logits / temperature)

    def cpu(self) -> Predictive:
        """The same on the CPU."""
        weights = None if self.weights is None else self.weights.cpu()
        return Predictive(self.logits.cpu(), self.average, weights)

    def __len__(self) -> int:
        return self.logits.shape[1]

    @staticmethod
    def cat(parts: Iterable[Predictive]) -> Predictive:
        """Join batches.

        Raises:
            BellaError: there are none, or they differ in particles, classes or average.
        """
        parts = list(parts)
        if not parts:
            raise BellaError("There is nothing to predict: the data are empty.")
        kinds = {(p.logits.shape[0], p.logits.shape[2], p.average) for p in parts}
        if len(kinds) > 1:
            raise BellaError(
                f"Batches of different (particles, classes, average) cannot be joined: "
                f"{sorted(kinds)}."
            )
        weights = None
        if any(part.weights is not None for part in parts):
            weights = torch.cat([part.all_weights() for part in parts], 1)
        return Predictive(torch.cat([part.logits for part in parts], 1), parts[0].average, weights)

    def all_weights(self) -> Float[Tensor, "particles batch"]:
        """The weights, where all particles count the same too."""
        if self.weights is not None:
            return self.weights
        return self.logits.new_full(self.logits.shape[:2], 1 / len(self.logits))


def agree(logits: Float[Tensor, "first batch classes"], bound: float) -> Bool[Tensor, " batch"]:
    """The examples on which particles have a mutual information below a bound in nats."""
    return metrics.mutual_information(logits.softmax(-1)) < bound


def early_weights(
    logits: Float[Tensor, "particles batch classes"], early: Bool[Tensor, " batch"], first: int
) -> Float[Tensor, "particles batch"]:
    """1 / particles, and on early examples 1 / first for the first ones and 0 for the others."""
    weights = logits.new_full(logits.shape[:2], 1 / len(logits))
    weights[:first, early] = 1 / first
    weights[first:, early] = 0
    return weights
