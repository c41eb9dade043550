"""VBL: a Laplace approximation around the trained single LoRA."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

import bella
from bella.evaluation.cost import PeakMemory, cost
from bella.experiments.methods.base import Costs, Derived, Outputs

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class VBL(Derived):
    """`bella.laplace` in its linearised form.

    Attributes:
        draws: of the logits, for each prediction.
        prior_precision: how τ is chosen. The marginal likelihood takes the factors for draws of
            the prior, and A, which starts wide, asks for one so wide that nothing is certain.
    """

    draws: int = 20
    prior_precision: Literal["marginal_likelihood", "validation"] = "validation"

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
            posterior = bella.laplace(
                trained,
                train,
                prior_precision=self.prior_precision,
                validation=validation,
            )
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
