"""STL-10: 13,000 labelled colour photographs of 96x96 pixels, ten classes.

Nine of the classes are CIFAR-10's (its ``car`` is CIFAR-10's ``automobile``); STL-10 has ``monkey``
where CIFAR-10 has ``frog``. So it is a shifted test set of a network that was trained on CIFAR-10:
``cifar10-stl10``. The eight classes of one of the papers are not named there; ``classes`` chooses.

Source: Coates, Lee and Ng, An analysis of single-layer networks in unsupervised feature learning,
AISTATS 2011.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bella.data.images import Preprocess
from bella.data.labelled import ArrayImages
from bella.data.sets.base import DataSet, with_validation
from bella.data.sets.cifar import CIFAR10, CLASSES, cifar10
from bella.files import read_bytes

SIDE = 96
COUNTS = {"train": 5_000, "test": 8_000}
NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
AS_CIFAR = {"car": "automobile"}
"""Classes that CIFAR-10 calls otherwise."""
SHARED = tuple(name for name in CLASSES if name != "frog")
"""The nine classes that both have, by CIFAR-10's names."""


def _part(root: Path, part: str, preprocess: Preprocess) -> ArrayImages:
    """The images and labels of one part.

    Pixels stand column by column, first all red ones, and labels count from 1.

    Raises:
        BellaError: a file is cut short, or the two do not belong together.
    """
    path = root / f"{part}_X.bin"
    size = 3 * SIDE * SIDE
    try:
        pixels = np.memmap(path, np.uint8, "r")
        labels = np.frombuffer(read_bytes(root / f"{part}_y.bin"), np.uint8)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise STL10.damaged(path, str(error)) from error
    if not len(labels) or len(pixels) != size * len(labels):
        raise STL10.damaged(
            path,
            f"{len(pixels):,} bytes where {len(labels):,} labels ask for {size * len(labels):,}",
        )
    if not 1 <= int(labels.min()) <= int(labels.max()) <= len(NAMES):
        raise STL10.damaged(root / f"{part}_y.bin", "labels beyond the ten classes")
    STL10.expect(len(labels), COUNTS[part], f"{part} images", root)
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)
    return ArrayImages(images, [int(label) - 1 for label in labels], NAMES, preprocess)


def stl10(folder: Path | None, preprocess: Preprocess, seed: int = 0) -> dict[str, ArrayImages]:
    """The labelled parts of STL-10; see `DataSet.read`."""
    _, root = STL10.found(folder)
    train, test = _part(root, "train", preprocess), _part(root, "test", preprocess.plain())
    return with_validation(train, seed) | {"test": test}


def cifar10_stl10(folder: Path | None, preprocess: Preprocess, seed: int = 0) -> dict[str, Any]:
    """CIFAR-10 of the nine classes that STL-10 shares; STL-10's test images of these are a shift.

    Args:
        folder: holds the folders of both.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of what is held out for validation.
    """
    parts: dict[str, Any] = {
        name: part.of_classes(SHARED) for name, part in cifar10(folder, preprocess, seed).items()
    }
    _, root = STL10.found(folder)
    other = _part(root, "test", preprocess.plain())
    other.classes = tuple(AS_CIFAR.get(name, name) for name in NAMES)
    return parts | {"stl10": other.of_classes(SHARED)}


PLACE = (
    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz, 2,640,397,119 bytes, unpacks to "
    "stl10_binary"
)
SOURCE = (
    "Coates, Lee and Ng, An analysis of single-layer networks in unsupervised feature learning, "
    "AISTATS 2011"
)
FORMS = {
    "binary": tuple(f"{part}_{kind}.bin" for part in COUNTS for kind in ("X", "y")),
}

STL10 = DataSet(
    "stl10",
    "STL-10",
    "image",
    "13,000 labelled colour photographs of 96x96 pixels, 10 classes (nine of them CIFAR-10's)",
    {
        "train": "4,500 of the training images",
        "validation": "the other 500, drawn by class",
        "test": "the 8,000 test images",
    },
    PLACE,
    SOURCE,
    stl10,
    FORMS,
)

CIFAR10_STL10 = DataSet(
    "cifar10-stl10",
    "CIFAR-10 and STL-10",
    "image",
    "CIFAR-10's images of the nine classes that STL-10 shares; STL-10's are the shift",
    {
        "train": "40,500 of CIFAR-10's training images",
        "validation": "4,500 more, drawn by class",
        "test": "9,000 of its test images",
        "stl10": "the 7,200 test images of STL-10",
    },
    f"{PLACE}; beside CIFAR-10 ({CIFAR10.place})",
    SOURCE,
    cifar10_stl10,
    FORMS,
)
