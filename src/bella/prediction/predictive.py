"""What particles say together: the predictive distribution and its uncertainties.

p(y | x) = mean_i p_i(y | x)        (or, by choice, the softmax of the mean logits)
total uncertainty   H[p]            expected entropy   mean_i H[p_i]   (aleatoric)
mutual information  H[p] - mean_i H[p_i] >= 0                          (epistemic)

An example may have one answer, or one for each of its positions (tokens, pixels). Everything is
then shaped (batch, positions...); `Predictive.counted` keeps the positions that count, one after
another.
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
IGNORED = -100
"""Label of positions that do not count, as torch's cross_entropy has it."""


@dataclass(frozen=True, eq=False)
class Predictive:
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

    Raises:
        BellaError: logits of another shape, or not finite.
    """

    logits: Float[Tensor, "particles *batch classes"]
    average: Average = "probs"
    weights: metrics.Weights = None
    lengths: Int[Tensor, " examples"] | None = None

    def __post_init__(self) -> None:
        if self.logits.dim() < 3:
            raise BellaError(
                f"Logits of shape {tuple(self.logits.shape)} are not (particles, batch, classes) "
                "or (particles, batch, positions..., classes)."
            )
        if self.average not in ("probs", "logits"):
            raise BellaError(f"average={self.average!r}: choose 'probs' or 'logits'.")
        object.__setattr__(self, "logits", metrics.precise(self.logits))
        if not torch.isfinite(self.logits).all():
            raise BellaError(
                "The network's logits are not finite: are the inputs, and did training converge?"
            )

    @cached_property
    def particle_log_probs(self) -> Float[Tensor, "particles *batch classes"]:
        """log p_i(y | x)."""
        return torch.log_softmax(self.logits, -1)

    @cached_property
    def log_probs(self) -> Float[Tensor, "*batch classes"]:
        """log p(y | x), by log-mean-exp."""
        if self.average == "logits":
            return torch.log_softmax(metrics.over_particles(self.logits, self.weights), -1)
        if self.weights is None:
            return torch.logsumexp(self.particle_log_probs, 0) - math.log(self.logits.shape[0])
        return torch.logsumexp(self.particle_log_probs + self.weights.log().unsqueeze(-1), 0)

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
        """mean_i H[p_i], in nats."""
        return metrics.expected_entropy(self.particle_probs, self.weights)

    @cached_property
    def mutual_information(self) -> Float[Tensor, "*batch"]:
        """H[mean_i p_i] - mean_i H[p_i] >= 0, in nats: what the particles dispute.

        With averaged logits too: H[p] - mean_i H[p_i] may be negative there and is no information.
        """
        return metrics.mutual_information(self.particle_probs, self.weights)

    @property
    def predictions(self) -> Int[Tensor, "*batch"]:
        """The most probable classes."""
        return self.log_probs.argmax(-1)

    @property
    def confidence(self) -> Float[Tensor, "*batch"]:
        """The largest probability of each example."""
        return self.probs.amax(-1)

    @property
    def saved(self) -> float:
        """Share of the passes of a particle over an example that were skipped."""
        if self.weights is None:
            return 0.0
        return self.by_example((self.weights == 0).double().mean(0)).nanmean().item()

    def by_example(self, values: Float[Tensor, "*batch"]) -> Float[Tensor, " examples"]:
        """The mean of a figure, such as `entropy`, over each example's positions.

        Of those that count, after `counted`; NaN for an example that has none.
        """
        if self.lengths is None:
            return values.flatten(1).mean(1) if values.dim() > 1 else values
        return reduced(values, self.lengths, "sum") / self.lengths

    def stopped(self, bound: float, first: int = 2) -> Predictive:
        """What `predict` says with ``stop=bound``, told from what all particles said."""
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

    def counted(
        self, labels: Integer[Tensor, "*batch"], ignore_index: int = IGNORED
    ) -> tuple[Predictive, Int[Tensor, " counted"]]:
        """Only what counts, one after another: the predictive and its labels.

        Args:
            labels: class numbers, of any integer type.
            ignore_index: the label of what does not count.

        Raises:
            BellaError: labels of another shape or type.
        """
        if labels.is_floating_point() or labels.is_complex():
            raise BellaError(f"Labels are {labels.dtype}: give class numbers as integers.")
        if labels.shape != self.logits.shape[1:-1]:
            raise BellaError(
                f"Labels of shape {tuple(labels.shape)} do not fit predictions of shape "
                f"{tuple(self.logits.shape[1:])}, whose last axis holds the classes."
            )
        labels = labels.long()
        mask = labels != ignore_index
        if labels.dim() == 1 and bool(mask.all()):
            return self, labels
        return self.positions(mask), labels[mask]

    def positions(self, mask: Bool[Tensor, "*batch"]) -> Predictive:
        """Only these positions, one after another, with the `lengths` of the examples.

        An attention mask, say, where there are no labels to say what counts.

        Raises:
            BellaError: a mask of another shape.
        """
        if mask.shape != self.logits.shape[1:-1]:
            raise BellaError(
                f"A mask of shape {tuple(mask.shape)} does not fit predictions of shape "
                f"{tuple(self.logits.shape[1:])}, whose last axis holds the classes."
            )
        mask = mask.bool().to(self.logits.device)
        lengths = None
        if self.lengths is not None:
            lengths = reduced(mask.long(), self.lengths, "sum")
        elif mask.dim() > 1:
            lengths = mask.flatten(1).sum(1)
        weights = None if self.weights is None else self.weights[:, mask]
        return Predictive(self.logits[:, mask], self.average, weights, lengths)

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
        lengths = None if self.lengths is None else self.lengths.cpu()
        return Predictive(self.logits.cpu(), self.average, weights, lengths)

    def __len__(self) -> int:
        return self.logits.shape[1]

    @staticmethod
    def cat(parts: Iterable[Predictive]) -> Predictive:
        """Join batches.

        Raises:
            BellaError: there are none, or they differ in particles, classes, average, or in the
                lengths of their examples while nobody has said which positions count.
        """
        parts = list(parts)
        if not parts:
            raise BellaError("There is nothing to predict: the data are empty.")
        kinds = {(p.logits.shape[0], p.logits.shape[-1], p.average) for p in parts}
        if len(kinds) > 1:
            raise BellaError(
                f"Batches of different (particles, classes, average) cannot be joined: "
                f"{sorted(kinds)}."
            )
        shapes = {tuple(part.logits.shape[2:-1]) for part in parts}
        if len(shapes) > 1:
            raise BellaError(
                f"Batches whose examples have different positions {sorted(shapes)} cannot be "
                "joined: keep those that count first, by .counted(labels) or .positions(mask)."
            )
        weights = lengths = None
        if any(part.weights is not None for part in parts):
            weights = torch.cat([part.all_weights() for part in parts], 1)
        if any(part.lengths is not None for part in parts):
            lengths = torch.cat([part.all_lengths() for part in parts])
        logits = torch.cat([part.logits for part in parts], 1)
        return Predictive(logits, parts[0].average, weights, lengths)

    def all_weights(self) -> Float[Tensor, "particles ..."]:
        """The weights, where all particles count the same too."""
        if self.weights is not None:
            return self.weights
        return self.logits.new_full(self.logits.shape[:-1], 1 / len(self.logits))

    def all_lengths(self) -> Int[Tensor, " examples"]:
        """The lengths, where each entry of the batch axis is an example too."""
        if self.lengths is not None:
            return self.lengths
        return torch.ones(len(self), dtype=torch.long, device=self.logits.device)


def reduced(values: Tensor, lengths: Tensor, reduce: str) -> Tensor:
    """The sum or ``amax`` of values (positions,) over each example's; 0 for one without any."""
    owner = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    zeros = values.new_zeros(len(lengths))
    return zeros.scatter_reduce(0, owner, values, reduce, include_self=True)


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
