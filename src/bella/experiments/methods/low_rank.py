"""Low-rank particles: single LoRA, their ensemble, and Bella with each transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bella
from bella.experiments.methods.trained import Trained, moved
from bella.experiments.probe import stacked
from bella.posterior import Posterior

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class LowRank(Trained):
    """`bella.low_rank` on the task's layers; linear heads start from probes."""

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """With the task's rank and start of the factors."""
        build = dict(bench.task.build) | dict(self.build)
        return super().key(bench, seed) | {"rank": bench.task.rank, "build": build}

    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """Particles of the task's rank."""
        opened = bench.task.open(seed)
        posterior = bella.low_rank(
            opened.network,
            self.particles,
            bench.task.rank,
            opened.defaults.target_modules,
            modules_to_save=opened.defaults.modules_to_save,
            seed=seed,
            **(dict(bench.task.build) | dict(self.build)),
        )
        bench.start_heads(stacked(posterior), seed)
        return posterior


ROWS = (
    LowRank(name="lora", title="single LoRA", settings=moved("ensemble")),
    LowRank(
        name="lora-ensemble", title="low-rank ensemble", particles=5, settings=moved("ensemble")
    ),
    # The strongest repulsion that costs no validation NLL (docs/results.md).
    LowRank(
        name="bella",
        title="Bella (repulsive)",
        particles=5,
        settings=moved("repulsive", temperature=1000.0),
    ),
    LowRank(name="bella-svgd", title="Bella (svgd)", particles=5, settings=moved("svgd")),
    LowRank(
        name="bella-function", title="Bella (function)", particles=5, settings=moved("function")
    ),
)
