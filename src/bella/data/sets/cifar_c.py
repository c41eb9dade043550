"""CIFAR-10-C: the test images of CIFAR-10 under 19 corruptions at five severities.

A file of NumPy for each corruption holds the 10,000 test images five times, from severity 1 to 5;
``labels.npy`` holds the labels of all 50,000. Training, validation and clean test images are those
of CIFAR-10, which lies in the same folder in any of its forms.

Source: Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
perturbations, ICLR 2019. CC-BY 4.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bella.data.images import Preprocess
from bella.data.labelled import ArrayImages
from bella.data.sets.base import DataSet
from bella.data.sets.cifar import CIFAR10, CLASSES, PARTS, cifar10
from bella.errors import BellaError, nearest

CORRUPTIONS = 19
SEVERITIES = 5
TEST = 10_000
LABELS = "labels.npy"


def read_array(dataset: DataSet, path: Path) -> np.ndarray:
    """An array of NumPy's own format, mapped into memory: what is read are the images asked for.

    Raises:
        BellaError: the file is missing, cut short or of another kind; objects are never unpickled.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise dataset.damaged(path, " ".join(str(error).split())[:200]) from error


def cifar10_c(
    folder: Path | None,
    preprocess: Preprocess,
    seed: int = 0,
    *,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (5,),
) -> dict[str, Any]:
    """The parts of CIFAR-10, and of CIFAR-10-C a part ``CORRUPTION-SEVERITY`` each.

    Args:
        folder: holds the folder of CIFAR-10-C, and one of CIFAR-10.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of what is held out for validation.
        corruptions: which; all that are there by default.
        severities: which, from 1 to 5.

    Raises:
        BellaError: files are missing or damaged, or there are no such corruptions or severities.
    """
    _, root = CIFAR10_C.found(folder)
    parts: dict[str, Any] = dict(cifar10(folder, preprocess, seed))
    there = sorted(path.stem for path in root.glob("*.npy") if path.name != LABELS)
    CIFAR10_C.expect(len(there), CORRUPTIONS, "corruptions", root)
    for name in corruptions:
        if name not in there:
            raise BellaError(f"{root} has no corruption {name!r}: near are {nearest(name, there)}.")
    wrong = [s for s in severities if s not in range(1, SEVERITIES + 1)]
    if wrong:
        raise BellaError(f"severities={list(severities)}: {wrong[0]!r} is not one of 1 to 5.")
    labels = read_array(CIFAR10_C, root / LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % SEVERITIES:
        raise CIFAR10_C.damaged(root / LABELS, f"labels of shape {labels.shape}")
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        raise CIFAR10_C.damaged(root / LABELS, "labels beyond the ten classes")
    each = len(labels) // SEVERITIES
    CIFAR10_C.expect(each, TEST, "images of a severity", root)
    for name in corruptions or there:
        images = read_array(CIFAR10_C, root / f"{name}.npy")
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise CIFAR10_C.damaged(root / f"{name}.npy", f"{images.dtype} of shape {images.shape}")
        for severity in severities:
            rows = slice((severity - 1) * each, severity * each)
            parts[f"{name}-{severity}"] = ArrayImages(
                images[rows], labels[rows].tolist(), CLASSES, preprocess.plain()
            )
    return parts


CIFAR10_C = DataSet(
    "cifar10-c",
    "CIFAR-10-C",
    "image",
    "CIFAR-10, and its 10,000 test images under 19 corruptions at five severities",
    PARTS | {"CORRUPTION-SEVERITY": "the test images so corrupted, such as fog-5"},
    "https://zenodo.org/records/2535967, CIFAR-10-C.tar, 2,918,471,680 bytes, unpacked beside "
    f"CIFAR-10 ({CIFAR10.place})",
    "Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and "
    "perturbations, ICLR 2019; CC-BY 4.0",
    cifar10_c,
    {"arrays": (LABELS,)},
)
