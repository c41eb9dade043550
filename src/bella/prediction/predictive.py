"""What particles say together: the predictive distribution and its uncertainties.

p(y | x) = mean_i p_i(y | x)        (or, by choice, the softmax of the mean logits)
total uncertainty   H[p]            expected entropy   mean_i H[p_i]   (aleatoric)
mutual information  H[p] - mean_i H[p_i] >= 0                          (epistemic)

A pool is tempered after its members, with shares w_i, were averaged to q. That changes how
probable an answer y is, and not what it would tell of who is right, r_i(y) = w_i p_i(y) / q(y).
Both together are p(y) r_i(y): there member i says p_i(y) p(y) / q(y) over its sum, and counts for
w_i times that sum. The mean of these is p again, so entropy, expected entropy and mutual
information are of one distribution.

An example may have one answer, or one for each of its positions (tokens, pixels). Everything is
then shaped (batch, positions...); `Predictive.counted` keeps the positions that count, one after
another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from bella import metrics
from bella.errors import BellaError
from bella.likelihood import IGNORED
from bella.prediction.said import Average, Said, reduced

__all__ = ["IGNORED", "Average", "Predictive", "agree", "early_weights"]


@dataclass(frozen=True, eq=False)
class Predictive(Said):
    """The predictive distribution of a batch, from every particle's logits.

    Attributes:
        logits: (particles, batch, classes), or (particles, batch, positions..., classes), in
            float32 or better.
        average: ``probs``: the mean of the particles' probabilities; ``logits``: the softmax of
            their mean logits. Never mix the two in one table.
        weights: what each particle counts for each example, (particles, *batch) with a sum of 1; 0
            for those that were skipped. ``None``: all ran on all and count the same.
        lengths: where the batch is a row of positions that count, how many of them each example
            has, in order: (examples,), some may be 0. ``None``: each entry of the batch axis is an
            example.
        temperature: what the pooled distribution is tempered by, p^(1/T) over its sum, for each
            example (*batch). ``logits``, ``particle_probs`` and ``weights`` are from before it.
        distance: how far each example is from the training data, in standard deviations of
            validation examples (*batch); of a mixture that has a distance.
        novelty: score of being unlike the training data, (*batch): how rare such a distance and
            such an entropy are among validation examples, in nats; of such a mixture.

    Raises:
        BellaError: logits of another shape, or not finite.
    """

    temperature: Float[Tensor, "*batch"] | None = None
    distance: Float[Tensor, "*batch"] | None = None
    novelty: Float[Tensor, "*batch"] | None = None

    likelihood: ClassVar[str] = "classes"
    beside: ClassVar[tuple[str, ...]] = ("temperature", "distance", "novelty")

    @cached_property
    def particle_log_probs(self) -> Float[Tensor, "particles *batch classes"]:
        """log p_i(y | x)."""
        return torch.log_softmax(self.logits, -1)

    @cached_property
    def log_probs(self) -> Float[Tensor, "*batch classes"]:
        """log p(y | x), by log-mean-exp."""
        if self.average == "logits":
            mean = metrics.over_particles(self.logits, self.weights)
            pooled = torch.log_softmax(mean, -1)
        else:
            pooled = self._mixed
        if self.temperature is None:
            return pooled
        return torch.log_softmax(pooled / self.temperature.unsqueeze(-1), -1)

    @cached_property
    def _mixed(self) -> Float[Tensor, "*batch classes"]:
        """log mean_i p_i(y | x), before it is tempered."""
        if self.weights is None:
            return torch.logsumexp(self.particle_log_probs, 0) - math.log(self.logits.shape[0])
        return torch.logsumexp(self.particle_log_probs + self.weights.log().unsqueeze(-1), 0)

    @cached_property
    def _within(self) -> tuple[Float[Tensor, "particles *batch classes"], metrics.Weights]:
        """What each particle says, and counts for, within what is predicted."""
        if self.temperature is None:
            return self.particle_probs, self.weights
        said = self.particle_log_probs + (self.log_probs - self._mixed)
        return said.softmax(-1), self.all_weights() * said.logsumexp(-1).exp()

    @cached_property
    def particle_probs(self) -> Float[Tensor, "particles *batch classes"]:
        """p_i(y | x)."""
        return self.particle_log_probs.exp()

    @cached_property
    def probs(self) -> Float[Tensor, "*batch classes"]:
        """p(y | x)."""
        return self.log_probs.exp()

    @cached_property
    def entropy(self) -> Float[Tensor, "*batch"]:
        """H[p], total uncertainty in nats."""
        return metrics.entropy(self.probs)

    @cached_property
    def expected_entropy(self) -> Float[Tensor, "*batch"]:
        """mean_i H[p_i], in nats: what is unsure to each particle by itself."""
        return metrics.expected_entropy(*self._within)

    @cached_property
    def mutual_information(self) -> Float[Tensor, "*batch"]:
        """H[mean_i p_i] - mean_i H[p_i] >= 0, in nats: what the particles dispute.

        The entropy is the sum of this and of the expected entropy, of a tempered pool too. Only of
        averaged logits that nothing tempers it is not: H[p] - mean_i H[p_i] may be negative there
        and is no information, so this is that of the averaged probabilities.
        """
        return metrics.mutual_information(*self._within)

    @property
    def predictions(self) -> Int[Tensor, "*batch"]:
        """The most probable classes."""
        return self.log_probs.argmax(-1)

    @property
    def confidence(self) -> Float[Tensor, "*batch"]:
        """The largest probability of each example."""
        return self.probs.amax(-1)

    def stopped(self, bound: float, first: int = 2) -> Predictive:
        """What `predict` says with ``stop=bound``, told from what all particles said.

        Raises:
            BellaError: the members of a mixture do not count the same, so the first of them do not
                stand for the others.
        """
        if self.temperature is not None:
            raise BellaError("A mixture does not stop early: ask its particles alone.")
        early = agree(self.logits[:first], bound, lengths=self.lengths)
        if first >= len(self.logits) or not early.any():
            return self
        if self.lengths is not None:
            early = early.repeat_interleave(self.lengths)
        return replace(self, weights=early_weights(self.logits, early, first))

    def nll(self, labels: Integer[Tensor, "*batch"]) -> float:
        """Mean negative log-likelihood of the predictive over what counts, in nats.

        Raises:
            BellaError: labels of another shape, or out of range, or none that counts.
        """
        counted, labels = self.counted(labels)
        return metrics.nll(counted.log_probs, labels)

    def at_temperature(self, temperature: float) -> Tensor:
        """The logits divided by it."""
        return self.logits / temperature


def agree(
    logits: Float[Tensor, "first *batch classes"],
    bound: float,
    *,
    counted: Bool[Tensor, "*batch"] | None = None,
    lengths: Int[Tensor, " examples"] | None = None,
) -> Bool[Tensor, " examples"]:
    """The examples on which particles have a mutual information below a bound in nats.

    An example with several positions is as disputed as the most disputed of those that count.

    Args:
        logits: of the particles that are asked.
        bound: in nats.
        counted: which positions count; ``None`` for all.
        lengths: see `Predictive`.
    """
    disputed = metrics.mutual_information(logits.softmax(-1))
    if counted is not None:
        disputed = disputed.where(counted.to(disputed.device), 0)
    if lengths is not None:
        disputed = reduced(disputed, lengths, "amax")
    elif disputed.dim() > 1:
        disputed = disputed.flatten(1).amax(1)
    return disputed < bound


def early_weights(
    logits: Float[Tensor, "particles *batch classes"], early: Bool[Tensor, " batch"], first: int
) -> Float[Tensor, "particles ..."]:
    """1 / particles, and on early examples 1 / first for the first ones and 0 for the others."""
    weights = logits.new_full(logits.shape[:-1], 1 / len(logits))
    weights[:first, early] = 1 / first
    weights[first:, early] = 0
    return weights
