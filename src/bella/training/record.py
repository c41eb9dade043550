"""The record of a run: what was asked for, what happened, and the folder that holds both."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bella.files import write_json, write_whole


@dataclass
class Record:
    """What `bella.fit` returns.

    Attributes:
        settings: the settings of the run (JSON values).
        history: one mapping of figures for each epoch.
        trace: every few steps, and at the end of every epoch, the figures that watchers hear (see
            `bella.training.watching`), with ``step``.
        within: steps of the epoch after those, where the run stands in the middle of one.
        best_epoch: the epoch whose particles were kept, counted from 1.
        seconds: wall time of training, validation included.
        particles_per_pass: how many particles ran at once.
        float32: the kernel that multiplied float32 matrices, see `bella.fast_float32`.
        precision: what it multiplied in, what the base was held in, and, where the first batch was
            predicted in both, by how much that differed from float32.
        folder: the run folder, if there is one.
        versions: of the libraries and of Python, and the machine's kind.
    """

    settings: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    trace: list[dict[str, float]] = field(default_factory=list)
    within: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    particles_per_pass: int | None = None
    float32: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write ``run.json``, ``history.csv`` and ``trace.csv``."""
        if self.folder is None:
            return
        content = {
            "settings": self.settings,
            "versions": self.versions,
            "best_epoch": self.best_epoch,
            "within": self.within,
            "seconds": round(self.seconds, 3),
            "particles_per_pass": self.particles_per_pass,
            "float32": self.float32,
            "precision": self.precision,
            "history": self.history,
            "trace": self.trace,
        }
        write_json(self.folder / "run.json", content)
        for name, rows in (("history.csv", self.history), ("trace.csv", self.trace)):
            if rows:
                write_whole(self.folder / name, partial(_write_csv, rows))


def _write_csv(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def describe(figures: Mapping[str, float], epochs: int) -> str:
    """An epoch in the words of a bar."""
    text = f"epoch {figures['epoch']}/{epochs} loss {figures['loss']:.3f}"
    if "validation_nll" in figures:
        text += f" validation NLL {figures['validation_nll']:.3f}"
    return text
