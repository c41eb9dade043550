"""What stopping early saves, and what it changes.

The first m particles run on every example. Where their mutual information is below a bound, the
others are skipped and the predictive is that of the first m. Skipping changes no particle's output,
so one pass of all particles tells the figures at every bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import Progress
from torch import Tensor

from bella.errors import BellaError
from bella.evaluation.evaluate import collect, evaluate_predictive
from bella.posterior import Posterior
from bella.prediction.predictive import Predictive

BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, math.inf)
"""Of the first particles' mutual information, in nats; at the last, nobody waits for the rest."""


def early_stop_table(
    posterior: Posterior,
    loader: Any,
    bounds: Sequence[float] = BOUNDS,
    *,
    first: int = 2,
    ood: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[dict[str, float]]:
    """Every figure with and without early stopping.

    Args:
        posterior: of more than ``first`` particles.
        loader: labelled data.
        bounds: of the first particles' mutual information, in nats: `bella.predict`'s ``stop``.
        first: how many particles run on every example.
        ood: a loader of other data, or a mapping of names to loaders.
        progress: a display to show bars in.
        **options: those of `bella.predict`.

    Returns:
        A row for each bound, and before them one for bound 0, which skips nothing. ``bound``;
        ``saved``, the share of passes of a particle over an example of ``loader`` that are skipped
        (``saved_NAME`` for other data); the figures of `evaluate_predictive`; and for each of them
        ``change_FIGURE``, its difference from the first row's.

    Raises:
        BellaError: ``first`` is not from 2 to one less than the particles, or no data.
    """
    named = ood if isinstance(ood, Mapping) else {} if ood is None else {"ood": ood}
    predictive, labels = collect(posterior, loader, progress=progress, **options)
    others = {
        name: collect(posterior, data, progress=progress, **options) for name, data in named.items()
    }
    return early_stop_rows(predictive, labels, bounds, first=first, ood=others)


def early_stop_rows(
    predictive: Predictive,
    labels: Tensor,
    bounds: Sequence[float] = BOUNDS,
    *,
    first: int = 2,
    ood: Mapping[str, tuple[Predictive, Tensor]] | None = None,
) -> list[dict[str, float]]:
    """The rows of `early_stop_table` from what `collect` returned.

    Raises:
        BellaError: ``first`` is not from 2 to one less than the particles, or no data.
    """
    particles = len(predictive.logits)
    if not 2 <= first < particles:
        raise BellaError(
            f"first={first}: of {particles} particles, 2 to {particles - 1} can go first."
        )
    others = ood or {}
    plain = evaluate_predictive(predictive, labels, ood=others)
    rows = []
    for bound in (0.0, *bounds):
        stopped = predictive.stopped(bound, first)
        elsewhere = {name: (p.stopped(bound, first), y) for name, (p, y) in others.items()}
        found = evaluate_predictive(stopped, labels, ood=elsewhere)
        saved = {f"saved_{name}": p.saved for name, (p, _) in elsewhere.items()}
        change = {f"change_{name}": value - plain[name] for name, value in found.items()}
        rows.append({"bound": bound, "saved": stopped.saved} | saved | found | change)
    return rows
