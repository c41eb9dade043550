"""Low-rank particles: single LoRA, their ensemble, and each transport."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bella.errors import BellaError
from bella.experiments.methods.trained import Trained, moved
from bella.particles.targets import find
from bella.posterior import Posterior
from bella.recipes import BELLA, KINDS, Plan, make

if TYPE_CHECKING:
    from bella.experiments.bench import Bench
    from bella.models import Opened
    from bella.models.language import OpenedLanguage


@dataclass(frozen=True, kw_only=True)
class LowRank(Trained):
    """`bella.low_rank` on the task's layers; linear heads start from probes.

    Attributes:
        targets: those of the task's layers that change; all of them where it is empty.
    """

    targets: tuple[str, ...] = ()

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """With what the task says of low-rank changes and heads."""
        build = built(bench, self)
        return super().key(bench, seed) | {
            "rank": bench.task.rank,
            "build": build,
        }

    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """Particles of the task's rank."""
        opened = bench.open(seed)
        return make("low-rank", opened.network, self.plan(bench, seed, opened))

    def plan(self, bench: Bench, seed: int, opened: Opened | OpenedLanguage) -> Plan:
        """What the recipe is told.

        Raises:
            BellaError: `targets` are not among the layers that the task changes.
        """
        options = {"rank": bench.task.rank} | built(bench, self)
        plan = bench.plan(KINDS["low-rank"], self.particles, seed, options, opened)
        if not self.targets:
            return plan
        theirs = find(opened.network, opened.defaults.target_modules, what="target_modules")
        if not set(find(opened.network, self.targets, what="targets")) <= set(theirs):
            raise BellaError(
                f"targets={list(self.targets)} are not all among the {len(theirs)} layers that "
                f"{bench.task.name} changes: choose of {', '.join(theirs[:6])}, ..."
            )
        # What was computed up to the first of the task's layers serves all of them.
        return replace(plan, target_modules=self.targets, shared_prefix=bench.entrance)


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
