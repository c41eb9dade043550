"""Posteriors over the layers' own weights, as `bella.recipes` converts them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bella.experiments.methods.trained import Trained
from bella.posterior import Posterior
from bella.recipes import KINDS, make

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Converted(Trained):
    """A recipe that replaces layers of the network.

    Attributes:
        recipe: its name in `bella.recipes.KINDS`.
    """

    recipe: str

    @property
    def from_scratch(self) -> bool:
        """Yes: it trains all weights there."""
        return True

    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """Everything frozen but what the converted layers hold, or nothing frozen."""
        opened = bench.open(seed)
        plan = bench.plan(KINDS[self.recipe], self.particles, seed, self.build, opened)
        if bench.task.pretrained:
            plan = replace(plan, shared_prefix=bench.entrance)
        return make(self.recipe, opened.network, plan)
