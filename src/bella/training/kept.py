"""The particles that a run keeps: of its best epoch, or where none is best of the last one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bella.posterior import Posterior
from bella.storage import own_values, put_back


class Kept:
    """A copy of a posterior's particles as they were at the end of an epoch.

    There is one at any time, so that a run that leaves the finite numbers has somewhere to go back.

    Args:
        posterior: whose particles are kept, as they are now at first.
        which: the ``best`` epoch by validation NLL, or the ``last``.
        patience: so many epochs without a better one are waited for; ``None`` for all.

    Attributes:
        best: least validation NLL, its epoch counted from 0, and that epoch's particles; ``None``
            before the first validation. It is part of a checkpoint.
        finite: epochs done and particles, as long as there is no best.
    """

    def __init__(self, posterior: Posterior, which: str = "best", patience: int | None = None):
        self.posterior = posterior
        self.which = which
        self.patience = patience
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.finite: tuple[int, dict[str, Tensor]] | None = None
        self.keep(0)

    def after(self, epoch: int, figures: Mapping[str, float]) -> None:
        """An epoch, counted from 0, is done and has these figures: keep it if it is to be kept."""
        if self.which == "last" or "validation_nll" not in figures:
            self.keep(epoch + 1)
        else:
            self.keep_best(epoch, figures["validation_nll"])

    def waited(self, epochs: int) -> bool:
        """Whether, after so many epochs, ``patience`` of them brought nothing better."""
        best = self.best_epoch
        return self.patience is not None and best is not None and epochs + 1 - best > self.patience

    def keep(self, epochs: int) -> None:
        """The particles as they are now, after so many epochs, where none is best."""
        if self.best is None:
            self.finite = (epochs, self._copy())

    def keep_best(self, epoch: int, score: float) -> None:
        """The particles as they are now, if their score is the least so far."""
        if self.best is None or score < self.best[0]:
            self.best, self.finite = (score, epoch, self._copy()), None

    def load(
        self,
        best: tuple[float, int, dict[str, Tensor]] | None,
        epochs: int,
        finite: tuple[int, dict[str, Tensor]] | None = None,
    ) -> None:
        """Continue with a checkpoint's best, or with the particles that were kept before the middle
        of an epoch; else with its particles, which are in place."""
        self.best, self.finite = best, finite
        if finite is None:
            self.keep(epochs)

    @property
    def best_epoch(self) -> int | None:
        """Counted from 1; ``None`` where none is best."""
        return None if self.best is None else self.best[1] + 1

    def restore(self) -> int:
        """Put the kept particles back; returns after how many epochs they were so."""
        if self.best is not None:
            epochs, kept = self.best[1] + 1, self.best[2]
        else:
            assert self.finite is not None
            epochs, kept = self.finite
        put_back(self.posterior, kept)
        return epochs

    @property
    def values(self) -> dict[str, Tensor]:
        """The particles that are kept, by their names in files."""
        if self.best is not None:
            return self.best[2]
        assert self.finite is not None
        return self.finite[1]

    def change(self, values: dict[str, Tensor]) -> None:
        """Keep other tensors by the same names: a part of each, say."""
        if self.best is not None:
            self.best = (*self.best[:2], values)
        else:
            assert self.finite is not None
            self.finite = (self.finite[0], values)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in own_values(self.posterior).items()}
