"""``tokens``: the next token, as causal language models are trained."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.likelihood.base import IGNORED, Likelihood, whole_numbers
from bella.likelihood.classes import Classes


class Tokens(Classes):
    """-log softmax(logits of position t)[label t + 1]: transformers shifts so inside its models."""

    name: ClassVar[str] = "tokens"

    def targets(self, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """The labels one place to the left; the last position has none."""
        labels = whole_numbers(labels, "token numbers")
        return F.pad(labels[..., 1:], (0, 1), value=ignore_index)

    def scores(
        self, logits: Tensor, outputs: Any, labels: Tensor | None, axis: ClassAxis
    ) -> Tensor:
        """The logits with the vocabulary last.

        Raises:
            BellaError: there are no positions to shift along.
        """
        placed = super().scores(logits, outputs, labels, axis)
        if placed.dim() < 4:
            raise BellaError(
                f"Logits of shape {tuple(placed.shape)} have no positions that tokens could be "
                "shifted along: pass likelihood='classes' if every row has its label."
            )
        return placed

    def root(self, outputs: Tensor) -> Tensor:
        """Not defined: an example has many positions.

        Raises:
            BellaError: always.
        """
        return Likelihood.root(self, outputs)
