"""Tasks to compare on: a file a task, and its name in `TASKS`."""

from __future__ import annotations

from collections.abc import Callable

from bella.errors import BellaError, nearest
from bella.experiments.tasks.elpv import elpv_task
from bella.experiments.tasks.fashion_mnist import fashion_task
from bella.experiments.tasks.folder import folder_task
from bella.experiments.tasks.from_scratch import fashion_mlp_task, fashion_resnet_task
from bella.experiments.tasks.shifts import with_corruptions, with_other
from bella.experiments.tasks.task import Gallery, Place, Task, Words
from bella.experiments.tasks.wordnet import wordnet_task

__all__ = [
    "TASKS",
    "Gallery",
    "Place",
    "Task",
    "Words",
    "folder_task",
    "task_named",
    "with_corruptions",
    "with_other",
]

TASKS: dict[str, Callable[[], Task]] = {
    "elpv": elpv_task,
    "fashion-mnist": fashion_task,
    "fashion-resnet": fashion_resnet_task,
    "fashion-mlp": fashion_mlp_task,
    "wordnet": wordnet_task,
}


def task_named(name: str) -> Task:
    """One of the demos' tasks.

    Raises:
        BellaError: there is none of that name.
    """
    if name not in TASKS:
        raise BellaError(f"data {name!r} is unknown: choose {nearest(name, TASKS)}.")
    return TASKS[name]()
