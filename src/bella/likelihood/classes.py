"""``classes``: a class number for each position, scored by the softmax of its logits."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bella import metrics
from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.likelihood.base import EXIST, IGNORED, Likelihood, whole_numbers


class Classes(Likelihood):
    """-log softmax(logits)[label], the label as it stands."""

    name: ClassVar[str] = "classes"

    def targets(self, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """The class numbers, as int64."""
        return whole_numbers(labels, "class numbers")

    def scores(
        self, logits: Tensor, outputs: Any, labels: Tensor | None, axis: ClassAxis
    ) -> Tensor:
        """The logits with the classes last.

        Raises:
            BellaError: an axis that nothing decides, or one class only.
        """
        placed = metrics.precise(axis.place(logits, outputs, labels))
        if placed.dim() and placed.shape[-1] == 1:
            raise BellaError(
                "The network has one output, and the softmax of one is always 1: give it two "
                f"logits for two classes; {EXIST}."
            )
        return placed

    def losses(self, scores: Tensor, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """The cross-entropy of each position.

        Raises:
            BellaError: a class that does not exist (looked for on CPU tensors; on a GPU it would
                wait for the device).
        """
        if targets.device.type == "cpu":
            metrics.check_labels(targets, scores.shape[-1], ignore_index)
        flat = F.cross_entropy(
            scores.flatten(0, -2), targets.flatten(), ignore_index=ignore_index, reduction="none"
        )
        return flat.view(targets.shape)

    def class_weights(self, targets: Tensor, weights: Tensor) -> Tensor:
        """The weight of each position's class."""
        return weights[targets.clamp(0, len(weights) - 1)]

    def root(self, outputs: Tensor) -> Tensor:
        """R = diag(√p) - p √pᵀ, for R Rᵀ = diag(p) - p pᵀ."""
        p = outputs.softmax(-1)
        return torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)
