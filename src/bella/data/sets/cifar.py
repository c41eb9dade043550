"""CIFAR-10 and CIFAR-100: 60,000 colour photographs of 32x32 pixels, 10 or 100 classes.

They are read as their author gives them (batches for Python), as parquet files (the hub's
``uoft-cs/cifar10`` and ``uoft-cs/cifar100``), or from folders ``train/CLASS`` and ``test/CLASS``.

Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bella.data.folder import ImageFolder
from bella.data.hub import of_parquet
from bella.data.images import Preprocess
from bella.data.labelled import ArrayImages, LabelledImages
from bella.data.sets.base import DataSet, with_validation
from bella.data.sets.pickles import read_pickle

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
COUNTS = {"train": 50_000, "test": 10_000}
PARTS = {
    "train": "45,000 of the training images",
    "validation": "the other 5,000, drawn by class",
    "test": "the 10,000 test images",
}
SOURCE = "Krizhevsky, Learning multiple layers of features from tiny images, 2009"


def read_batch(
    dataset: DataSet, path: Path, labels: str
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], list[int]]:
    """The images and labels of one batch.

    Args:
        dataset: whose batch it is.
        path: of the batch.
        labels: the name under which they stand.

    Raises:
        BellaError: the file is no such batch.
    """
    batch = read_pickle(path)
    pixels = _entry(batch, "data")
    numbers = _entry(batch, labels)
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2):
        raise dataset.damaged(path, "it holds no array of pixels")
    if pixels.shape[1] != 3072 or not isinstance(numbers, list) or len(numbers) != len(pixels):
        raise dataset.damaged(path, f"pixels of shape {pixels.shape}, and labels of other number")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), [int(n) for n in numbers]


def _entry(batch: Any, name: str) -> Any:
    """An entry by its name, whether Python 2 or 3 wrote it."""
    if not isinstance(batch, dict):
        return None
    return batch.get(name.encode(), batch.get(name))


def _names(dataset: DataSet, path: Path, entry: str) -> tuple[str, ...]:
    found = _entry(read_pickle(path), entry)
    if not isinstance(found, list) or not found:
        raise dataset.damaged(path, f"it has no {entry}")
    return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in found)


def _read(
    dataset: DataSet, folder: Path | None, preprocess: Preprocess, seed: int
) -> dict[str, LabelledImages]:
    layout = LAYOUTS[dataset.name]
    form, root = dataset.found(folder)
    parts: dict[str, LabelledImages] = {}
    if form == "parquet":
        files = {part: sorted(root.glob(f"{part}-*.parquet")) for part in COUNTS}
        parts = of_parquet(files, preprocess, label=layout.label)
    elif form == "folders":
        parts["train"] = ImageFolder(root / "train", preprocess)
        parts["test"] = ImageFolder(root / "test", preprocess.plain(), parts["train"].classes)
    else:
        classes = _names(dataset, root / layout.names, f"{layout.label}_names")
        for part, batches in (("train", layout.train), ("test", (layout.test,))):
            read = [read_batch(dataset, root / batch, f"{layout.label}s") for batch in batches]
            labels = [number for _, some in read for number in some]
            if not labels or not 0 <= min(labels) <= max(labels) < len(classes):
                raise dataset.damaged(root, f"labels beyond its {len(classes)} classes")
            pixels = (image for images, _ in read for image in images)
            process = preprocess if part == "train" else preprocess.plain()
            parts[part] = ArrayImages(pixels, labels, classes, process)
    for part, wanted in COUNTS.items():
        dataset.expect(len(parts[part]), wanted, f"{part} images", root)
    return with_validation(parts["train"], seed) | {"test": parts["test"]}


@dataclass(frozen=True)
class Layout:
    """How the batches are called, the file with the classes' names, and the labels."""

    train: tuple[str, ...]
    test: str
    names: str
    label: str


LAYOUTS = {
    "cifar10": Layout(TRAIN, "test_batch", "batches.meta", "label"),
    "cifar100": Layout(("train",), "test", "meta", "fine_label"),
}


def cifar10(
    folder: Path | None, preprocess: Preprocess, seed: int = 0
) -> dict[str, LabelledImages]:
    """The parts of CIFAR-10; see `DataSet.read`."""
    return _read(CIFAR10, folder, preprocess, seed)


def cifar100(
    folder: Path | None, preprocess: Preprocess, seed: int = 0
) -> dict[str, LabelledImages]:
    """The parts of CIFAR-100 with its 100 fine classes; see `DataSet.read`."""
    return _read(CIFAR100, folder, preprocess, seed)


CIFAR10 = DataSet(
    "cifar10",
    "CIFAR-10",
    "image",
    "60,000 colour photographs of 32x32 pixels, 10 classes",
    PARTS,
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, 170,498,071 bytes, unpacks to "
    "cifar-10-batches-py; or the parquet files of huggingface.co/datasets/uoft-cs/cifar10",
    SOURCE,
    cifar10,
    {
        "python batches": (*TRAIN, "test_batch", "batches.meta"),
        "parquet": ("train-*.parquet", "test-*.parquet"),
        "folders": tuple(f"{part}/{name}/" for part in COUNTS for name in CLASSES),
    },
)

CIFAR100 = DataSet(
    "cifar100",
    "CIFAR-100",
    "image",
    "60,000 colour photographs of 32x32 pixels, 100 classes",
    PARTS,
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, 169,001,437 bytes, unpacks to "
    "cifar-100-python; or the parquet files of huggingface.co/datasets/uoft-cs/cifar100",
    SOURCE,
    cifar100,
    {
        "python batches": ("train", "test", "meta"),
        "parquet": ("train-*.parquet", "test-*.parquet"),
        "folders": tuple(f"{part}/{name}/" for part in COUNTS for name in ("apple", "worm")),
    },
)
