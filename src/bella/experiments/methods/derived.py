"""Rows that another row's run gives for nothing: the soup, half the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

import bella
from bella.experiments.methods.base import Costs, Derived, Outputs
from bella.posterior import Posterior
from bella.posteriors.point import Point
from bella.storage import TENSORS

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Soup(Derived):
    """The one network whose weights are the mean of the particles'.

    Attributes:
        reads_images: whether the particles changed what the other methods share.
    """

    reads_images: bool = False

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Merge another run's particles."""
        posterior = bella.load(bench.place(self.of, seed) / "posterior", bench.open(seed).network)
        entrance = False if self.reads_images else bench.entrance
        soup = Point(posterior.soup(), shared_prefix=entrance)
        size = sum(p.numel() * p.element_size() for p in soup.parameters())
        outputs = bench.predict(soup, seed, images=self.reads_images)
        return outputs, bench.costs_of(self.of, seed) | {
            "trainable": 0,
            "bytes_on_disk": size,
            "similarity": math.nan,
            "ms_predicting": bench.milliseconds(soup),
        }


@dataclass(frozen=True, kw_only=True)
class Half(Derived):
    """Another run saved in bfloat16, and what is read back from that file.

    Attributes:
        draws: of a stochastic posterior, for each prediction.
    """

    draws: int = 1

    @property
    def from_scratch(self) -> bool:
        """A file is a file."""
        return True

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Save, load and predict."""

        def load(folder: Path) -> Posterior:
            return bella.load(folder, bench.open(seed).network)

        whole = load(bench.place(self.of, seed) / "posterior")
        half = load(whole.save(place / "posterior", dtype=torch.bfloat16))
        stored = load_file(place / "posterior" / TENSORS).values()
        size = sum(x.numel() * x.element_size() for x in stored)
        return bench.predict(half, seed, draws=self.draws), bench.costs_of(self.of, seed) | {
            "bytes_on_disk": size,
            "ms_predicting": bench.milliseconds(half, draws=self.draws),
        }


ROWS = (
    Soup(name="soup", title="soup of particles", of="repulsive"),
    *(
        Half(name=f"{name}-bf16", title=f"{title}, bf16 file", of=name, draws=5)
        for name, title in (
            ("vi", "mean-field VI"),
            ("ssvi", "SSVI (density 0.1)"),
            ("ssvi-0.05", "SSVI (density 0.05)"),
        )
    ),
)
