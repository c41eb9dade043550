"""The demo: a pre-trained network becomes Bayesian on real images, and the report says what for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bella.experiments.compare import compare
from bella.experiments.material import write_html
from bella.experiments.methods import DEMO
from bella.experiments.page import write_page
from bella.experiments.tasks import task_named


def demo(
    data: str = "elpv",
    *,
    folder: str | Path,
    seeds: int = 3,
    progress: bool = True,
    precision: str = "auto",
    **settings: Any,
) -> dict[str, Any]:
    """Compare the demo's methods on a task; write ``results.json``, ``report.html``,
    ``report.md`` and pictures.

    Args:
        data: ``elpv`` or ``fashion-mnist``.
        folder: for everything that is written.
        seeds: how many training seeds.
        progress: show bars.
        precision: of training and predictions, see `bella.fit`.
        **settings: of `bella.fit`.

    Returns:
        The results, see `compare`.

    Raises:
        BellaError: unknown data.
        MissingExtraError: data or network are not installed.
    """
    task = task_named(data)
    settings["precision"] = precision
    results = compare(task, DEMO, seeds=seeds, folder=folder, progress=progress, **settings)
    write_page(task, results, folder)
    write_html(task, results, folder)
    return results
