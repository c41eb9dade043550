"""VBL: a Laplace approximation around the trained single LoRA."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import bella
from bella.evaluation.cost import PeakMemory, cost
from bella.experiments.methods.base import Costs, Derived, Outputs
from bella.recipes import KINDS, finish_laplace

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class VBL(Derived):
    """`bella.laplace` in its linearised form.

    Attributes:
        draws: of the logits, for each prediction.
    """

    draws: int = KINDS["laplace"].draws

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """One more pass over the training data."""
        base = bench.place(self.of, seed)
        before = bench.costs_of(self.of, seed)
        split = bench.task.split(seed)
        train, validation = bench.loader(*split["train"]), bench.loader(*split["validation"])
        begun = time.perf_counter()
        with PeakMemory() as peak, torch.random.fork_rng():
            torch.manual_seed(seed)
            trained = bella.load(base / "posterior", bench.task.open(seed).network)
            posterior = finish_laplace(trained, train, validation)
        seconds = time.perf_counter() - begun
        posterior.save(place / "posterior")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            outputs = bench.predict(posterior, seed, draws=self.draws)
        return outputs, {
            "trainable": before["trainable"],
            "bytes_on_disk": cost(posterior)["bytes_on_disk"],
            "similarity": math.nan,
            "seconds_training": before["seconds_training"] + seconds,
            "mb_training": max(before["mb_training"], peak.bytes / 1e6),
            "ms_predicting": bench.milliseconds(posterior, draws=self.draws),
        }


ROWS = (VBL(name="vbl", title="VBL (Laplace-LoRA)", of="lora"),)
