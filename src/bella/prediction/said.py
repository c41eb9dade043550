"""What every particle said of a batch: how it is cut, joined and counted, whatever it is about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bella import metrics
from bella.errors import BellaError
from bella.likelihood import IGNORED, Likelihood, by_name

Average = Literal["probs", "logits"]


@dataclass(frozen=True, eq=False)
class Said(ABC):
    """What the predictives of all likelihoods share.

    Attributes:
        logits: the scores of `bella.likelihood.Likelihood.scores`: (particles, batch, s), or
            (particles, batch, positions..., s), in float32 or better.
        average: see `bella.Predictive`.
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

    likelihood: ClassVar[str]
    beside: ClassVar[tuple[str, ...]] = ()
    """Names of further tensors, each (*batch), that a kind of predictive may have."""

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

    @abstractmethod
    def nll(self, labels: Tensor) -> float:
        """Mean negative log-likelihood of the predictive over what counts, in nats."""

    @abstractmethod
    def at_temperature(self, temperature: float) -> Tensor:
        """The scores of each particle's p_i(y | x) to the power 1 / temperature."""

    def tempered(self, temperature: float) -> Self:
        """Each particle's p_i(y | x) to the power 1 / temperature, made a distribution again.

        Of classes the same logits divided by it, of numbers the same means with variances times it
        (see `bella.prediction.temperature`).

        Raises:
            BellaError: the temperature is not above 0.
        """
        if not temperature > 0:
            raise BellaError(f"temperature={temperature}: give a number above 0.")
        return replace(self, logits=self.at_temperature(temperature))

    @property
    def kind(self) -> Likelihood:
        """The likelihood that it is the predictive of."""
        return by_name(self.likelihood)

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

    def counted(self, labels: Tensor, ignore_index: int = IGNORED) -> tuple[Self, Tensor]:
        """Only what counts, one after another: the predictive and its labels.

        Args:
            labels: (batch, positions...), class numbers of any integer type, or numbers.
            ignore_index: the label of what does not count.

        Raises:
            BellaError: labels of another shape or type.
        """
        kind = self.kind
        labels = kind.targets(labels, ignore_index)
        if labels.shape != self.logits.shape[1:-1]:
            raise BellaError(
                f"Labels of shape {tuple(labels.shape)} do not fit predictions of shape "
                f"{tuple(self.logits.shape[1:])}, whose last axis holds the classes."
            )
        mask = kind.counted(labels, ignore_index)
        if labels.dim() == 1 and bool(mask.all()):
            return self, labels
        return self.positions(mask), labels[mask]

    def positions(self, mask: Bool[Tensor, "*batch"]) -> Self:
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
        return replace(self._taken(mask), lengths=lengths)

    def rows(self, index: Int[Tensor, " chosen"]) -> Self:
        """Some examples of a batch without positions, by their numbers, in that order.

        Raises:
            BellaError: the examples have positions.
        """
        if self.logits.dim() > 3 or self.lengths is not None:
            raise BellaError("Examples with positions are chosen by .positions(mask).")
        return self._taken(index)

    def _taken(self, chosen: Tensor) -> Self:
        taken: dict[str, Any] = {"logits": self.logits[:, chosen]}
        if self.weights is not None:
            taken["weights"] = self.weights[:, chosen]
        for name in self.beside:
            if (values := getattr(self, name)) is not None:
                taken[name] = values[chosen]
        return replace(self, **taken)

    def cpu(self) -> Self:
        """The same on the CPU."""
        names = ("logits", "weights", "lengths", *self.beside)
        moved: dict[str, Any] = {
            name: x.cpu() for name in names if (x := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def __len__(self) -> int:
        return self.logits.shape[1]

    @classmethod
    def cat(cls, parts: Iterable[Self]) -> Self:
        """Join batches.

        Raises:
            BellaError: there are none, or they differ in particles, classes, average, in what each
                example has beside its logits, or in the lengths of their examples while nobody has
                said which positions count.
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
        joined: dict[str, Any] = {}
        for name in cls.beside:
            values = [getattr(part, name) for part in parts]
            if any(x is None for x in values) and not all(x is None for x in values):
                raise BellaError(f"Some batches have a {name} and others have none: no join.")
            if values[0] is not None:
                joined[name] = torch.cat(values)
        return replace(parts[0], logits=logits, weights=weights, lengths=lengths, **joined)

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
