"""Watching a training: every logged figure goes to whoever wants it, while it goes on.

    bella.fit(posterior, train, folder="runs/a", watch=[TensorBoard("runs/a/tensorboard")])

A *watcher* is any function of a step's number and its figures by name. It hears some sixty steps
of a training and the last of every epoch; what it hears stands in the run folder's ``trace.csv``
too. A tracker is a line: ``watch=[lambda step, figures: tracker.log(figures, step=step)]``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bella.errors import require
from bella.files import shortened

Watcher = Callable[[int, Mapping[str, float]], object]
"""Called with the number of steps that are done and the figures by name: ``epoch`` (from 1),
``loss`` (mean over the epoch so far), ``learning_rate``, ``distance`` (of two particles), what the
transport says of its last step (``bandwidth``, ``mean_kernel``, ``repulsion_ratio``, ...), and at
the end of an epoch ``validation_nll`` and the like. Figures that do not exist are left out."""


class Watchers:
    """All watchers of one training; one that fails is told of once and does not end it.

    Args:
        watchers: what is called.
    """

    def __init__(self, watchers: Sequence[Watcher] = ()):
        self.watchers = tuple(watchers)
        self._failed: set[int] = set()

    def __call__(self, row: Mapping[str, float]) -> None:
        """Tell everyone a row of the trace, which has its ``step``."""
        figures = {
            name: value for name, value in row.items() if name != "step" and math.isfinite(value)
        }
        for number, watcher in enumerate(self.watchers):
            try:
                watcher(int(row["step"]), dict(figures))
            except Exception as error:  # a tracker's server is away; days of training are not
                if number not in self._failed:
                    self._failed.add(number)
                    warnings.warn(
                        f"A watcher failed at step {int(row['step'])} ({type(error).__name__}: "
                        f"{shortened(error)}): the training goes on, and it is called again.",
                        stacklevel=2,
                    )


class TensorBoard:
    """A watcher that writes events for TensorBoard, by its own writer.

    What a run that began anew or went on from a checkpoint repeats is hidden by TensorBoard itself
    (its ``purge_step``).

    Args:
        folder: of the events; it is made at the first of them.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path):
        require("tensorboard", extra="watch")
        self.folder = Path(folder)
        self._writer: Any = None

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures; they are on the disk afterwards."""
        if self._writer is None:
            summary = require("torch.utils.tensorboard", extra="watch")
            self._writer = summary.SummaryWriter(str(self.folder), purge_step=step)
        for name, value in figures.items():
            self._writer.add_scalar(tag_of(name), value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the file of events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def tag_of(name: str) -> str:
    """A figure's place in TensorBoard: those of validation stand together, and so do the others."""
    part, _, rest = name.partition("_")
    return f"{part}/{rest}" if part == "validation" else f"training/{name}"
