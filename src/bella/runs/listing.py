"""The runs in a folder, with what became of them. Only their small files are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bella.errors import BellaError
from bella.files import read_mapping, read_sealed_json
from bella.runs.opened import MODEL
from bella.training.settings import read_yaml

SHOWN = ("accuracy", "nll", "ece", "rmse", "crps", "perplexity")
"""Figures that a terminal has room for, where a run has them."""

DEEPEST = 6
"""Folders within folders that are looked into."""


@dataclass(frozen=True)
class Listed:
    """One run.

    Attributes:
        folder: where it is.
        state: ``finished``, ``epoch 2 of 5`` (stopped, or it goes on), or ``damaged``.
        asked: what was asked for: ``network``, ``method``, ``particles``, ``task``, ``data``, ...
        figures: on its test part.
        seconds: of training.
        changed: when it was last written, in seconds since 1970.
        problem: what is wrong with a damaged one.
    """

    folder: Path
    state: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    changed: float = 0.0
    problem: str = ""

    def row(self) -> dict[str, Any]:
        """JSON values, all there are."""
        names = ("task", "network", "method", "particles", "transport", "data", "seed")
        return {
            "run": str(self.folder),
            "state": self.state,
            **{name: self.asked.get(name) for name in names},
            "seconds": self.seconds,
            "changed": self.changed,
            "figures": dict(self.figures),
            **({"problem": self.problem} if self.problem else {}),
        }


def list_runs(folder: str | Path) -> list[Listed]:
    """The runs in a folder and in its folders, the newest first.

    Raises:
        BellaError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BellaError(f"There is no folder {root}: name one that holds runs.")
    found = [listed(place) for place in run_folders(root)]
    return sorted(found, key=lambda run: (-run.changed, str(run.folder)))


def run_folders(root: Path) -> Iterator[Path]:
    """Folders that hold a ``model.json``, links to folders left out; not those within a run."""
    for place, inside, names in os.walk(root):
        deep = len(Path(place).relative_to(root).parts)
        inside[:] = sorted(name for name in inside if not name.startswith(".") and deep < DEEPEST)
        if MODEL in names:
            inside.clear()
            yield Path(place)


def listed(folder: Path) -> Listed:
    """What became of one run; a damaged one says so."""
    changed = (folder / MODEL).stat().st_mtime
    try:
        model = read_sealed_json(folder / MODEL)
        there = (folder / "config.yaml").exists()
        asked = (read_yaml(folder / "config.yaml") if there else {}) | {
            name: model[name] for name in ("network", "task", "method") if name in model
        }
        record = _json(folder / "run.json")
        done, epochs = len(record.get("history", ())), asked.get("epochs")
        figures = {
            name: float(value)
            for name, value in _json(folder / "figures.json").items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name in ("run.json", "figures.json"):
            if (folder / name).exists():
                changed = max(changed, (folder / name).stat().st_mtime)
        return Listed(
            folder,
            # Figures are the last that is written.
            "finished" if figures else f"epoch {done} of {epochs}",
            asked,
            figures,
            record.get("seconds"),
            changed,
        )
    except (BellaError, OSError, TypeError, AttributeError) as error:
        return Listed(folder, "damaged", changed=changed, problem=str(error))


def _json(path: Path) -> dict[str, Any]:
    return read_mapping(path) if path.exists() else {}
