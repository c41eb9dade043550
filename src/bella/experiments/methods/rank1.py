"""Rank-1 components on shared weights."""

from __future__ import annotations

from bella.experiments.methods.converted import Converted
from bella.experiments.methods.trained import moved
from bella.recipes import KINDS

ROWS = (
    Converted(
        name="rank1",
        title="rank-1 BNN (K=4)",
        recipe="rank1",
        particles=4,
        draws=KINDS["rank1"].draws,
        settings=moved("ensemble"),
        fine_tuning={"learning_rate": KINDS["rank1"].settings["learning_rate"]},
    ),
)
