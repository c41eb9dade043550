"""Linear probes: heads on the frozen features, which nothing else may lose to."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bella.experiments.methods.base import Costs, Method, Outputs
from bella.prediction.predictive import Predictive

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Probes(Method):
    """One probe, or several on resamples of the training data.

    Attributes:
        particles: how many.
    """

    particles: int = 1

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Fit and predict on features that are computed once for all."""
        bench.features("train", seed)  # the network's own pass is not the probes' time
        begun = time.perf_counter()
        probes = bench.probes_of(seed, self.particles)
        seconds = time.perf_counter() - begun
        outputs = {}
        for part in bench.task.split(seed):
            if part != "train":
                x, y = bench.features(part, seed)
                outputs[part] = (Predictive(torch.cat([probe.logits(x) for probe in probes])), y)
        size = sum(probe.weight.numel() + probe.bias.numel() for probe in probes)
        return outputs, {
            "trainable": size,
            "bytes_on_disk": 4 * size,
            "similarity": math.nan,
            "seconds_training": seconds,
            "mb_training": math.nan,
            "ms_predicting": math.nan,
        }


ROWS = (
    Probes(name="probe", title="linear probe"),
    Probes(name="probe-ensemble", title="ensemble of probes", particles=5),
)
