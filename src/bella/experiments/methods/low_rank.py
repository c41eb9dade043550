"""Low-rank particles: single LoRA, their ensemble, and Bella with each transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bella
from bella.experiments.methods.trained import Trained, moved
from bella.posterior import Posterior
from bella.training.probe import stacked

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class LowRank(Trained):
    """`bella.low_rank` on the task's layers; linear heads start from probes."""

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """With what the task says of low-rank changes and heads."""
        build = dict(bench.task.build) | dict(self.build)
        return super().key(bench, seed) | {
            "rank": bench.task.rank,
            "build": build,
            "frozen_heads": bench.task.frozen_heads,
        }

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
        heads = stacked(posterior)
        if bench.start_heads(heads, seed) and bench.task.frozen_heads:
            for head in heads.values():
                head.requires_grad_(False)
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
