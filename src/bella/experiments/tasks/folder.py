"""Anybody's images."""

from __future__ import annotations

from pathlib import Path

from bella.data import splits
from bella.data.images import Preprocess
from bella.experiments.tasks.task import Task, fixed, opener


def folder_task(path: str | Path, network: str, *, image_size: int | None = None) -> Task:
    """Anybody's folder or CSV of images (see `bella.data.folder`)."""
    classes = len(splits(path, Preprocess(32))["train"].classes)
    open_it = opener(network, classes, image_size)
    parts = splits(path, open_it(0).preprocess)
    source = {"path": str(Path(path).absolute()), "network": network, "image_size": image_size}
    return Task(Path(path).stem, str(path), open_it, parts, fixed(parts), source=source)
