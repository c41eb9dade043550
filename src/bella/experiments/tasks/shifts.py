"""Further shifts of any task on images: other images, and the test images under corruptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bella.data import LabelledImages, open_other
from bella.data.corruptions import corrupted
from bella.errors import BellaError
from bella.experiments.tasks.task import Place, Task, whole
from bella.runs.evaluating import names_of_other


def with_other(task: Task, paths: Sequence[str | Path]) -> Task:
    """A task with images of other kinds as shifted parts (see `bella.data.open_other`).

    Args:
        task: of images.
        paths: each a folder or a CSV file; one is called ``ood``, several by their own names.

    Raises:
        BellaError: the task has no images, two parts would have one name, or ``paths`` cannot be
            opened.
    """
    _refuse_without_images(task)
    named = names_of_other(paths, taken=[*task.split(0), *task.pools])
    opened: Any = task.open(0)
    preprocess = opened.preprocess.plain()
    others = {name: open_other(path, preprocess, task.classes) for name, path in named.items()}
    places = {name: whole(name, images) for name, images in others.items()}
    unscored = tuple(name for name, images in others.items() if min(images.labels) < 0)
    shifted = _with_parts(task, others, lambda seed: places)
    words = replace(task.words, unscored=(*task.words.unscored, *unscored))
    return replace(shifted, words=words)


def with_corruptions(
    task: Task, kinds: Sequence[str], severities: Sequence[int], *, side: int | None = None
) -> Task:
    """A task with its test images under corruptions as shifted parts, called KIND-SEVERITY.

    Args:
        task: of images.
        kinds: of `bella.data.corruptions.CORRUPTIONS`.
        severities: of each kind, 1 to 5.
        side: see `bella.data.corruptions.Corruption`.

    Raises:
        BellaError: the task has no images, or an argument is out of its range.
    """
    _refuse_without_images(task)
    images: Any = task.pools[task.split(0)["test"][0]]
    names = {f"{kind}-{severity}": (kind, severity) for kind in kinds for severity in severities}
    pools = {name: corrupted(images, *which, side=side) for name, which in names.items()}

    def places(seed: int) -> dict[str, Place]:
        _, positions = task.split(seed)["test"]
        return {name: (name, positions) for name in pools}

    return _with_parts(task, pools, places)


def _with_parts(
    task: Task,
    pools: Mapping[str, LabelledImages],
    places: Callable[[int], Mapping[str, Place]],
) -> Task:
    return replace(
        task,
        pools={**task.pools, **pools},
        split=lambda seed: {**task.split(seed), **places(seed)},
        shifts={**task.shifts, **{name: name for name in pools}},
    )


def _refuse_without_images(task: Task) -> None:
    if not all(isinstance(pool, LabelledImages) for pool in task.pools.values()):
        raise BellaError(f"{task.title} holds no images: other images and corruptions need some.")
