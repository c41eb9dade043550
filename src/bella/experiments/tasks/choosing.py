"""What a user names to compare on: one of the tasks, or any data, with further shifts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bella.data.corruptions import SEVERITIES, corruptions_named
from bella.experiments.tasks import TASKS, task_named
from bella.experiments.tasks.any_images import images_task
from bella.experiments.tasks.shifts import with_corruptions, with_other
from bella.experiments.tasks.task import Task
from bella.experiments.tasks.texts import text_task

NETWORK = "efficientnet-lite0"
"""What images that are no task of ours are seen by, where nobody says."""


def choose_task(
    data: str,
    *,
    folder: Path | None = None,
    network: str | None = None,
    image_size: int | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    ood: Sequence[str | Path] = (),
    corrupt: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    corrupt_size: int | None = None,
    **how: Any,
) -> Task:
    """Open what methods are to be compared on.

    Args:
        data: a name in `TASKS`, or any images, see `bella.data.open_data`; with ``task`` rows of
            text or a set of such. A task has its own network and split; with anything else said of
            either, a name that is also a set's is that set.
        folder: where the data lie, if that has to be said.
        network: of images that are no task; of rows of text.
        image_size: pixels, of images that are no task.
        task: of rows of text, see `bella.runs.texts.TextConfig`.
        columns: of rows of text.
        ood: images of other kinds, each a folder or a CSV file.
        corrupt: corruptions to see the test images under: names, or ``all``.
        severities: of each corruption.
        corrupt_size: see `bella.data.corruptions.Corruption`.
        **how: further arguments of `bella.data.open_data`.

    Raises:
        BellaError: data that cannot be opened; see the functions that are named here.
    """
    if task is not None:
        place = None if folder is None else str(folder)
        named = {"task": task, "data": data, "columns": columns, "network": network}
        named |= {"folder": place, "data_options": how.pop("options", None), **how}
        subject = text_task({name: value for name, value in named.items() if value is not None})
    elif data in TASKS and network is None and image_size is None and not how:
        subject = task_named(data, folder)
    else:
        subject = images_task(data, network or NETWORK, image_size=image_size, folder=folder, **how)
    if ood:
        subject = with_other(subject, ood)
    if corrupt:
        kinds = corruptions_named(corrupt)
        subject = with_corruptions(subject, kinds, severities, side=corrupt_size)
    return subject
