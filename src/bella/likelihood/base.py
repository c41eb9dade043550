"""What every likelihood says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from bella.classes import ClassAxis
from bella.errors import BellaError

IGNORED = -100
"""Label of positions that do not count."""


class Likelihood(ABC):
    """One likelihood p(target | scores).

    Attributes:
        name: what `nll` and `bella.fit` call it.
        of_classes: whether scores are logits of classes, and the targets their numbers.
        several: whether an example's positions are so many answers, as many for each example:
            labels, numbers.
    """

    name: ClassVar[str]
    of_classes: ClassVar[bool] = True
    several: ClassVar[bool] = False

    @abstractmethod
    def targets(self, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """Labels as the data have them, at the positions that are scored on them.

        Raises:
            BellaError: labels of another type.
        """

    @abstractmethod
    def scores(
        self, logits: Tensor, outputs: Any, labels: Tensor | None, axis: ClassAxis
    ) -> Tensor:
        """A posterior's outputs, position by position: (particles, batch, ..., s).

        Args:
            logits: (particles, batch, ...), what `logits_of` finds among the outputs.
            outputs: what the posterior returned.
            labels: as the data have them, where there are any.
            axis: where the network has its classes, if it has any.

        Raises:
            BellaError: outputs of another shape, or such as say nothing.
        """

    @abstractmethod
    def losses(self, scores: Tensor, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """The negative log-likelihood of each position in nats, 0 where it does not count.

        Args:
            scores: (particles, ..., s).
            targets: (particles, ...).
            ignore_index: label of what does not count.

        Raises:
            BellaError: targets that do not exist.
        """

    def counted(self, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """Which targets count, as truth values."""
        return targets != ignore_index

    def class_weights(self, targets: Tensor, weights: Tensor) -> Tensor:
        """The weight of each target by its class.

        Args:
            targets: (...), any where nothing counts.
            weights: (classes,).

        Raises:
            BellaError: there are no classes.
        """
        raise BellaError(
            f"likelihood={self.name!r} has no classes that class_weights could weigh: give each "
            "example its weight (weights=)."
        )

    def misfit(self, targets: Tensor, scores: Tensor) -> str:
        """In a sentence that targets do not fit the scores."""
        return (
            f"Labels of shape {tuple(targets.shape)} do not fit logits of shape "
            f"{tuple(scores.shape)}, which must be (particles, batch, ..., classes): give one "
            "class number an example or position (of one-hot rows their argmax(-1))."
        )

    # ------------------------------------------------------------ what a Laplace approximation asks

    def log(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Σ log p(target | scores) of one particle's scores (batch, ..., s), in nats."""
        return -self.losses(scores.unsqueeze(0), targets.unsqueeze(0)).sum()

    def root(self, outputs: Tensor) -> Tensor:
        """R (batch, outputs, columns) with R Rᵀ the Fisher matrix of the outputs (batch, outputs).

        Raises:
            BellaError: it is not defined here.
        """
        raise BellaError(
            f"A Laplace approximation is not defined for likelihood={self.name!r}: it needs one "
            "row of outputs an example, each scored on its own label."
        )


def whole_numbers(labels: Tensor, what: str) -> Tensor:
    """Labels as int64.

    Raises:
        BellaError: they are no tensor of integers.
    """
    if not isinstance(labels, Tensor):
        raise BellaError(f"Labels are a {type(labels).__name__}: give a tensor; {EXIST}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise BellaError(f"Labels are {labels.dtype}: give {what} as integers; {EXIST}.")
    return labels.long()


EXIST = (
    "what exists are class numbers ('classes'), the next token ('tokens'), several labels at once "
    "('bernoulli') and numbers ('gaussian')"
)
"""The likelihoods, for the tail of a sentence."""
