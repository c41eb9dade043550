"""Several particles distilled into one, which says in one pass what they say."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import bella
from bella.evaluation.cost import PeakMemory, cost
from bella.experiments.methods.base import Costs, Derived, Outputs

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Distillation(Derived):
    """`bella.distill` of another row's particles, on their own training images."""

    epochs: int = 10

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Train the student; predict with it alone."""
        before = bench.costs_of(self.of, seed)
        teacher = bella.load(bench.place(self.of, seed) / "posterior", bench.open(seed).network)
        train = bench.loader(*bench.task.split(seed)["train"], 32, shuffle=True)
        begun = time.perf_counter()
        with PeakMemory(bench.device) as peak:
            told = bella.distill(
                teacher.eval(), train, epochs=self.epochs, seed=seed, progress=False
            )
        seconds = time.perf_counter() - begun
        told.save(place / "posterior")
        counted = cost(told.posterior)
        return bench.predict(told, seed), {
            "trainable": counted["trainable"],
            "bytes_on_disk": counted["bytes_on_disk"],
            "similarity": math.nan,
            "seconds_training": before["seconds_training"] + seconds,
            "mb_training": max(before["mb_training"], peak.bytes / 1e6),
            "ms_predicting": bench.milliseconds(told),
        }


ROWS = (Distillation(name="distilled", title="particles distilled into one", of="repulsive"),)
"""Beside the particles that it is made of: one pass for n."""
