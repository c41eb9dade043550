"""Whole copies of the network: fine-tuning, its ensemble, and SVGD on all weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bella.experiments.methods.trained import Trained, moved
from bella.posterior import Posterior
from bella.recipes import KINDS, make

if TYPE_CHECKING:
    from bella.experiments.bench import Bench

RATE = {"learning_rate": KINDS["full"].settings["learning_rate"]}


@dataclass(frozen=True, kw_only=True)
class Full(Trained):
    """`bella.full`: every weight of every copy trains; heads start from the same probes."""

    reads_images: bool = True

    @property
    def from_scratch(self) -> bool:
        """Yes: it trains all weights there."""
        return True

    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """Copies that differ in their heads at first, or, from scratch, in everything."""
        opened = bench.open(seed)
        plan = bench.plan(KINDS["full"], self.particles, seed, self.build, opened)
        return make("full", opened.network, plan)


def _row(name: str, title: str, particles: int, transport: str) -> Full:
    # One copy at a time: n whole networks' activations need not stand side by side.
    settings = moved(transport) | {"particles_per_pass": 1}
    return Full(name=name, title=title, particles=particles, settings=settings, fine_tuning=RATE)


ROWS = (
    _row("single", "single (all weights)", 1, "ensemble"),
    _row("ensemble", "ensemble (all weights)", 5, "ensemble"),
    _row("svgd", "SVGD (all weights)", 5, "svgd"),
)
