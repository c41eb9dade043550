"""Tasks to compare on: a file a task, and its name in `TASKS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from bella.errors import BellaError, nearest
from bella.experiments.tasks.any_images import images_task
from bella.experiments.tasks.cifar10 import cifar10_task, cifar10_vit_task
from bella.experiments.tasks.digits import digits_task
from bella.experiments.tasks.drug_reviews import drug_reviews_task
from bella.experiments.tasks.elpv import elpv_task
from bella.experiments.tasks.fashion_mnist import fashion_task
from bella.experiments.tasks.from_scratch import (
    cifar10_resnet18_task,
    cifar10_wrn_task,
    fashion_mlp_task,
    fashion_resnet_task,
)
from bella.experiments.tasks.shifts import with_corruptions, with_other
from bella.experiments.tasks.task import Gallery, Place, Task, Words
from bella.experiments.tasks.texts import text_task
from bella.experiments.tasks.wordnet import wordnet_task
from bella.experiments.tasks.wordnet_choice import wordnet_choice_task

__all__ = [
    "TASKS",
    "Gallery",
    "Place",
    "Task",
    "Words",
    "images_task",
    "task_named",
    "text_task",
    "with_corruptions",
    "with_other",
]

TASKS: dict[str, Callable[..., Task]] = {
    "elpv": elpv_task,
    "fashion-mnist": fashion_task,
    "cifar10": cifar10_task,
    "cifar10-vit": cifar10_vit_task,
    "cifar10-resnet18": cifar10_resnet18_task,
    "cifar10-wrn": cifar10_wrn_task,
    "digits": digits_task,
    "fashion-resnet": fashion_resnet_task,
    "fashion-mlp": fashion_mlp_task,
    "wordnet": wordnet_task,
    "drug-reviews": drug_reviews_task,
    "wordnet-choice": wordnet_choice_task,
}


def task_named(name: str, folder: str | Path | None = None) -> Task:
    """One of the comparison's own tasks.

    Args:
        name: in `TASKS`.
        folder: where its data lie; where a package brings them it is not needed.

    Raises:
        BellaError: there is none of that name, or none that is read from a folder.
    """
    if name not in TASKS:
        raise BellaError(f"data {name!r} is unknown: choose {nearest(name, TASKS)}.")
    if folder is None:
        return TASKS[name]()
    if "folder" not in inspect.signature(TASKS[name]).parameters:
        raise BellaError(f"The task {name} finds its data by itself: leave out --folder {folder}.")
    return TASKS[name](folder=folder)
