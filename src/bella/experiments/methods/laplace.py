"""VBL: a Laplace approximation around the trained single LoRA, and one around every particle."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import bella
from bella.evaluation.cost import PeakMemory, cost
from bella.experiments.methods.base import Costs, Derived, Outputs
from bella.posterior import Posterior
from bella.prediction.predictive import Predictive
from bella.recipes import KINDS, finish_laplace

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class VBL(Derived):
    """`bella.laplace` in its linearised form, around each of the other row's particles.

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
        with PeakMemory(bench.device) as peak, torch.random.fork_rng():
            torch.manual_seed(seed)
            around = [finish_laplace(one, train, validation) for one in apart(bench, base, seed)]
        seconds = time.perf_counter() - begun
        said = []
        for number, posterior in enumerate(around):
            posterior.save(
                place / "posterior" / str(number) if len(around) > 1 else place / "posterior"
            )
            said.append(bench.predict(posterior, seed, draws=self.draws))
        outputs = {
            part: (Predictive(torch.cat([one[part][0].logits for one in said])), labels)
            for part, (_, labels) in said[0].items()
        }
        return outputs, {
            "trainable": before["trainable"],
            "bytes_on_disk": sum(cost(posterior)["bytes_on_disk"] for posterior in around),
            "similarity": math.nan,
            "seconds_training": before["seconds_training"] + seconds,
            "mb_training": max(before["mb_training"], peak.bytes / 1e6),
            "ms_predicting": sum(bench.milliseconds(p, draws=self.draws) for p in around),
        }


def apart(bench: Bench, run: Path, seed: int) -> Iterator[Posterior]:
    """The particles of an earlier run, each as a posterior of one."""
    whole = bella.load(run / "posterior", bench.open(seed).network)
    if whole.particles == 1:
        yield whole
        return
    for particle in range(whole.particles):
        settings = {**whole.settings, "particles": 1}
        one = bella.low_rank(bench.open(seed).network, **settings)
        theirs = whole.parameters_of(particle)
        with torch.no_grad():
            for name, value in one.stacked_parameters().items():
                value.copy_(theirs[name].unsqueeze(0))
        yield one.eval()


ROWS = (
    VBL(name="vbl", title="VBL (Laplace-LoRA)", of="lora"),
    VBL(name="mola", title="Laplace around every particle", of="lora-ensemble"),
)
