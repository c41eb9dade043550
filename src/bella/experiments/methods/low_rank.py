"""Low-rank particles: single LoRA, their ensemble, and each transport."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bella.experiments.methods.trained import Trained, moved
from bella.posterior import Posterior
from bella.recipes import BELLA, KINDS, make

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
        options = {"rank": bench.task.rank} | dict(bench.task.build) | dict(self.build)
        plan = bench.plan(KINDS["low-rank"], self.particles, seed, options, opened)
        frozen = bool(bench.task.frozen_heads and plan.probes)
        return make("low-rank", opened.network, replace(plan, frozen_heads=frozen))


ROWS = (
    LowRank(name="lora", title="single LoRA", settings=moved("ensemble")),
    LowRank(
        name="lora-ensemble", title="low-rank ensemble", particles=5, settings=moved("ensemble")
    ),
    LowRank(name="repulsive", title="particles (repulsive)", particles=5, settings=BELLA),
    LowRank(name="bella-svgd", title="particles (svgd)", particles=5, settings=moved("svgd")),
    LowRank(
        name="bella-function", title="particles (function)", particles=5, settings=moved("function")
    ),
)
