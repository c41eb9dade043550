"""Anybody's images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bella.data import FRACTIONS, LabelledImages, open_domains, splits
from bella.data.images import Preprocess
from bella.experiments.tasks.task import Task, fixed, opener


def folder_task(
    path: str | Path,
    network: str,
    *,
    image_size: int | None = None,
    train_domains: Sequence[str] = (),
) -> Task:
    """Anybody's folder or CSV of images (see `bella.data.folder`).

    Args:
        path: of the data.
        network: by name.
        image_size: pixels; the network's own by default.
        train_domains: domains to train on, of data that have some (`bella.data.open_domains`): the
            others are shifted parts.
    """

    def opened(preprocess: Preprocess) -> dict[str, LabelledImages]:
        if train_domains:
            return open_domains(path, preprocess, train_domains)
        return splits(path, preprocess)

    classes = len(opened(Preprocess(32))["train"].classes)
    open_it = opener(network, classes, image_size)
    parts = opened(open_it(0).preprocess)
    shifts = {name: name for name in parts if name not in FRACTIONS}
    return Task(Path(path).stem, str(path), open_it, parts, fixed(parts), shifts)
