"""ImageNet of the challenge of 2012 (ILSVRC): 1.28 million photographs of 1,000 classes.

Three layouts are read: folders ``train/WNID`` and ``val/WNID``; the challenge's own ``train/WNID``
with a flat ``val`` and the development kit beside it (``ILSVRC2012_devkit_t12``); and Kaggle's,
``Data/CLS-LOC`` with ``LOC_val_solution.csv``. Classes are called by their WordNet numbers
(``n01440764``), in their order.

Source: Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 115, 2015.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bella.data.folder import ImageFolder
from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages, images_in
from bella.data.sets.base import DataSet, with_validation
from bella.errors import nearest, require
from bella.files import read_bytes, shortened

DEVKIT = "ILSVRC2012_devkit_t12"
META = f"{DEVKIT}/data/meta.mat"
TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
KAGGLE = "LOC_val_solution.csv"
IMAGES = {"folders": "", "challenge": "", "Kaggle": "Data/CLS-LOC"}
"""Where train and val lie, in each form."""
COUNTS = {"train": 1_281_167, "val": 50_000}


def imagenet(
    folder: Path | None, preprocess: Preprocess, seed: int = 0
) -> dict[str, LabelledImages]:
    """The parts of ImageNet: its validation images, whose labels are known, are ``test``.

    Args:
        folder: in any of the three layouts.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of what is held out of the training images for validation.

    Raises:
        BellaError: files are missing or damaged.
    """
    form, root = IMAGENET.found(folder)
    place = root / IMAGES[form]
    train = ImageFolder(place / "train", preprocess)
    if form == "folders":
        test: LabelledImages = ImageFolder(place / "val", preprocess.plain(), train.classes)
    else:
        paths = images_in(place / "val")
        truth = _kaggle(root / KAGGLE) if form == "Kaggle" else _devkit(root, paths)
        test = LabelledImages(
            paths, [_class(path, truth, train.classes) for path in paths], train.classes, preprocess
        )
        test.preprocess = preprocess.plain()
    for name, part in (("train", train), ("val", test)):
        IMAGENET.expect(len(part), COUNTS[name], f"{name} images", place)
    return with_validation(train, seed) | {"test": test}


def _class(path: Path, truth: dict[str, str], classes: tuple[str, ...]) -> int:
    """The class of a validation image."""
    wnid = truth.get(path.stem)
    if wnid is None:
        raise IMAGENET.damaged(path.parent, f"{path.name} has no label in the list of answers")
    if wnid not in classes:
        near = nearest(wnid, classes)
        raise IMAGENET.damaged(path.parent, f"{path.name} is of {wnid}, train knows {near}")
    return classes.index(wnid)


def _kaggle(path: Path) -> dict[str, str]:
    """From an image's name to its class: ``ImageId,PredictionString``, a class and a box."""
    reader = csv.reader(io.StringIO(read_bytes(path).decode("utf-8", "replace"), newline=""))
    rows = [row for row in reader if row][1:]
    if not rows or any(len(row) < 2 or not row[1].split() for row in rows):
        raise IMAGENET.damaged(path, "lines without ImageId,PredictionString")
    return {row[0]: row[1].split()[0] for row in rows}


def _devkit(root: Path, paths: list[Path]) -> dict[str, str]:
    """From an image's name to its class: the n-th line is that of the n-th image, and numbers a
    synset of ``meta.mat``."""
    loadmat = require("scipy.io", extra="fit").loadmat
    try:
        synsets = loadmat(root / META, squeeze_me=True)["synsets"]
        wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        lines = [int(line) for line in read_bytes(root / TRUTH).split()]
    except Exception as error:  # MATLAB's format fails in many ways
        raise IMAGENET.damaged(root / DEVKIT, shortened(error)) from error
    unknown = sorted(set(lines) - set(wnid))
    if unknown:
        raise IMAGENET.damaged(root / TRUTH, f"number {unknown[0]} is no synset")
    numbers = {path.stem: path.stem.rpartition("_")[2] for path in paths}
    return {
        name: wnid[lines[int(number) - 1]]
        for name, number in numbers.items()
        if number.isdecimal() and 1 <= int(number) <= len(lines)
    }


IMAGENET = DataSet(
    "imagenet",
    "ImageNet (ILSVRC 2012)",
    "image",
    "1,331,167 photographs of 1,000 classes",
    {
        "train": "nine tenths of the 1,281,167 training images",
        "validation": "the other tenth, drawn by class",
        "test": "the challenge's 50,000 validation images: those of its test have no labels",
    },
    "https://image-net.org/download-images (an account is needed), ILSVRC2012_img_train.tar of "
    "138 GB and ILSVRC2012_img_val.tar of 6.3 GB; or Kaggle's imagenet-object-localization-"
    "challenge",
    "Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 115, 2015",
    imagenet,
    {
        "Kaggle": (KAGGLE, "Data/CLS-LOC/train/", "Data/CLS-LOC/val/"),
        "challenge": (META, TRUTH, "train/", "val/"),
        "folders": ("train/", "val/"),
    },
)
