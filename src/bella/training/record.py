"""The record of a run: what was asked for, what happened, and the folder that holds both."""

from __future__ import annotations

import csv
import json
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bella.errors import BellaError
from bella.storage import write_whole

LIBRARIES = ("bella-bnn", "torch", "accelerate", "transformers", "timm", "torchmetrics", "numpy")


@dataclass
class Record:
    """What `bella.fit` returns.

    Attributes:
        settings: the settings of the run (JSON values).
        history: one mapping of figures for each epoch.
        trace: every few steps the step's number, the epoch's mean loss so far, and the distance of
            two particles.
        best_epoch: the epoch whose particles were kept, counted from 1.
        seconds: wall time of training, validation included.
        particles_per_pass: how many particles ran at once.
        folder: the run folder, if there is one.
        versions: of the libraries and of Python, and the machine's kind.
    """

    settings: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    trace: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    particles_per_pass: int | None = None
    folder: Path | None = None
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def write(self) -> None:
        """Write ``run.json`` and ``history.csv``."""
        if self.folder is None:
            return
        content = {
            "settings": self.settings,
            "versions": self.versions,
            "best_epoch": self.best_epoch,
            "seconds": round(self.seconds, 3),
            "particles_per_pass": self.particles_per_pass,
            "history": self.history,
            "trace": self.trace,
        }
        write_json(self.folder / "run.json", content)
        if self.history:
            write_whole(self.folder / "history.csv", self._write_csv)

    def _write_csv(self, path: Path) -> None:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.history)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "machine": machine()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor or GPU that results were measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"{processor()}, {count} thread{'s' if count > 1 else ''}"


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole; NaN becomes null."""
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        BellaError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BellaError(f"{path.parent} holds no {path.name}: is it a run folder?") from None
    except json.JSONDecodeError as error:
        raise BellaError(f"{path} is damaged ({error}): run it again.") from None


def plain(value: Any) -> Any:
    """JSON values: tensors and paths turned plain, numbers that JSON lacks turned to null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
