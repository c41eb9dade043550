"""What is said of a run while it goes on: rows of figures, some sixty of them and one an epoch."""

from __future__ import annotations

from collections.abc import Sequence

from bella.training.collapse import PAIRS, Collapse
from bella.training.position import Position
from bella.training.step import Step
from bella.training.watching import Watcher, Watchers

ROWS = 60
"""Of a run's trace, beside those that end an epoch."""


class Trace:
    """The rows, and who is told of them.

    Args:
        step: of the run.
        steps: how many it has.
        watch: who is told.

    Attributes:
        rows: figures of the moments so far, see `bella.training.watching`.
        validated: figures of the last validation, for the bar.
    """

    def __init__(self, step: Step, steps: int, watch: Sequence[Watcher]):
        self.step = step
        self.every = max(1, steps // ROWS)
        self.watchers = Watchers(watch)
        self.collapse = Collapse()
        self.rows: list[dict[str, float]] = []
        self.validated: dict[str, float] = {}

    @property
    def is_due(self) -> bool:
        """Whether the step that was just done has a row."""
        return self.step.number % self.every == 0

    def log(self, epoch: int, position: Position) -> dict[str, float]:
        """The figures of this moment, which become the last row."""
        if self.rows and self.rows[-1]["step"] == self.step.number:
            del self.rows[-1]  # an epoch ended before its loader had said, or was stopped there
        row = {
            "step": self.step.number,
            **self._figures(epoch, position),
            **self.collapse.look(self.step.move.distances(), self.rows),
        }
        self.rows.append(row)
        return row

    def log_epoch(self, epoch: int, position: Position) -> dict[str, float]:
        """The figures of an epoch, for the history; watchers hear those of its last moment
        after the validation, with its figures."""
        last = self.log(epoch, position)
        pairs = {name: value for name, value in last.items() if name in PAIRS}
        return self._figures(epoch, position) | pairs

    def end_epoch(self) -> None:
        """The last row has the validation's figures too."""
        self.rows[-1] |= self.validated

    def tell(self) -> None:
        """Tell everyone the last row."""
        self.watchers(self.rows[-1])

    def _figures(self, epoch: int, position: Position) -> dict[str, float]:
        return {
            "epoch": epoch + 1,
            "loss": position.mean,
            "learning_rate": self.step.optimizer.param_groups[0]["lr"],
            **(self.step.move.log or position.log),
        }
