"""Low-rank particles: single LoRA, their ensemble, and each transport."""

from __future__ import annotations

from dataclasses import dataclass
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
        build = built(bench, self)
        return super().key(bench, seed) | {
            "rank": bench.task.rank,
            "build": build,
        }

    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """Particles of the task's rank."""
        opened = bench.task.open(seed)
        options = {"rank": bench.task.rank} | built(bench, self)
        plan = bench.plan(KINDS["low-rank"], self.particles, seed, options, opened)
        return make("low-rank", opened.network, plan)


def built(bench: Bench, method: Trained) -> dict[str, Any]:
    """Arguments of the constructor: the recipe's, over them the task's, over them the row's."""
    return {**KINDS["low-rank"].build, **bench.task.build, **method.build}


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
