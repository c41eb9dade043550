"""Rank-1 components on shared weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

import bella
from bella.experiments.methods.converted import Converted
from bella.experiments.methods.trained import moved
from bella.posterior import Posterior


@dataclass(frozen=True, kw_only=True)
class Rank1(Converted):
    """`bella.rank1`; its particles are the components."""

    def convert(
        self, network: nn.Module, *, pretrained: bool, heads: tuple[str, ...], **options: Any
    ) -> Posterior:
        """Components around a pre-trained network's weights; wide ones from scratch."""
        if not pretrained:  # chosen on validation, see docs/results.md
            options |= {"dropout_rate": 0.3, "prior_std": 0.7}
        return bella.rank1(network, self.particles, **options)


ROWS = (
    Rank1(
        name="rank1",
        title="rank-1 BNN (K=4)",
        particles=4,
        draws=4,
        settings=moved("ensemble"),
        fine_tuning={"learning_rate": 1e-4},  # on validation, among 1e-4, 3e-4 and 1e-3
    ),
)
