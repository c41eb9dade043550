"""``bernoulli``: several labels at once, each of them there (1) or not (0)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bella import metrics
from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.likelihood.base import EXIST, IGNORED, Likelihood


class Bernoulli(Likelihood):
    """-log σ(±logit) of every label, by itself.

    Each label is a position with two classes whose logits are 0 and z: softmax(0, z) = (1 - σ(z),
    σ(z)). So probabilities, entropies, mutual information, temperature and figures of several
    labels are those of positions.
    """

    name: ClassVar[str] = "bernoulli"
    several: ClassVar[bool] = True

    def targets(self, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """Zeros and ones as int64, of integers, truth values or floating-point numbers.

        Raises:
            BellaError: no whole numbers.
        """
        if not isinstance(labels, Tensor):
            raise BellaError(f"Labels are a {type(labels).__name__}: give a tensor; {EXIST}.")
        whole = labels.long()
        if labels.device.type == "cpu" and not bool((labels == whole).all()):
            raise BellaError(
                f"Label {labels[labels != whole][0].item():g} is neither 0 nor 1: several labels "
                f"at once are zeros and ones; {EXIST}."
            )
        return whole

    def scores(
        self, logits: Tensor, outputs: Any, labels: Tensor | None, axis: ClassAxis
    ) -> Tensor:
        """Logits (0, z) of each label: (particles, batch, ..., labels, 2)."""
        if logits.dim() < 3:
            raise BellaError(
                f"Logits of shape {tuple(logits.shape)} must be (particles, batch, ..., labels)."
            )
        z = metrics.precise(logits)
        return torch.stack((torch.zeros_like(z), z), -1)

    def losses(self, scores: Tensor, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """softplus of the logit of what is not so.

        Raises:
            BellaError: a label that is neither 0 nor 1.
        """
        if targets.device.type == "cpu":
            metrics.check_labels(targets, 2, ignore_index)
        z = scores[..., 1] - scores[..., 0]
        each = F.softplus(torch.where(targets == 1, -z, z))
        return each.masked_fill(targets == ignore_index, 0.0)

    def class_weights(self, targets: Tensor, weights: Tensor) -> Tensor:
        """The weight of each label: whichever it is, 0 or 1."""
        if targets.shape[-1] != len(weights):
            raise BellaError(
                f"There are {len(weights)} class_weights and {targets.shape[-1]} labels: give one "
                "a label."
            )
        return weights.expand(targets.shape)

    def misfit(self, targets: Tensor, scores: Tensor) -> str:
        """In a sentence that targets do not fit the scores."""
        return (
            f"Labels of shape {tuple(targets.shape)} do not fit outputs of shape "
            f"{tuple(scores.shape[1:-1])} for each particle: give a 0 or 1 for each of the "
            f"{scores.shape[-2]} labels of an example."
        )

    def root(self, outputs: Tensor) -> Tensor:
        """diag(√(p (1 - p)))."""
        p = outputs.sigmoid()
        return torch.diag_embed((p * (1 - p)).sqrt())
