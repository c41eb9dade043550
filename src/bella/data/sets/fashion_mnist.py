"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28x28 pixels, ten classes.

Source: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms, 2017. MIT.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from bella.data.images import Preprocess
from bella.data.labelled import ArrayImages
from bella.data.sets.base import DataSet, with_validation
from bella.data.split import stratified_split
from bella.errors import BellaError, MissingExtraError, require
from bella.files import read_bytes

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the files."""
COUNTS = {"train": 60_000, "t10k": 10_000}
FILES = tuple(f"{part}-{kind}-ubyte" for part in COUNTS for kind in ("images-idx3", "labels-idx1"))
LARGEST = 2**28
"""Bytes that a file may unpack to; the largest of the four has 47 million."""
NOISE = 0.38
"""Standard deviation of the noise in ``corrupted``, in units of the pixels' range: severity 5 of
ImageNet-C's Gaussian noise (Hendrycks and Dietterich 2019)."""

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (n, 28, 28) and labels (n,), both uint8."""


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, which is gzipped where its name says so.

    Raises:
        BellaError: the file is missing, cut short, of another kind, or beyond any reason.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(read_bytes(path))) as file:
                content = file.read(LARGEST + 1)
        else:
            content = read_bytes(path, LARGEST)
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise BellaError(f"{path} cannot be read as an idx file ({error}).") from error
    if (zeros, kind) != (0, 8) or len(content) != 4 + 4 * rank + math.prod(shape):
        raise BellaError(f"{path} is not an idx file of bytes, or not whole: get it anew.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _from_folder(folder: Path) -> list[Arrays]:
    form, root = FASHION_MNIST.found(folder)
    ending = ".gz" if form == "idx, gzipped" else ""
    found = []
    for part, wanted in COUNTS.items():
        images = read_idx(root / f"{part}-images-idx3-ubyte{ending}")
        labels = read_idx(root / f"{part}-labels-idx1-ubyte{ending}")
        if images.shape != (len(labels), 28, 28) or int(labels.max(initial=0)) >= len(CLASSES):
            raise FASHION_MNIST.damaged(
                root, f"{part}: images {images.shape} and labels {labels.shape} of ten classes"
            )
        FASHION_MNIST.expect(len(labels), wanted, f"{part} images", root)
        found.append((images, labels))
    return found


def _from_hub() -> list[Arrays]:
    try:
        loaded = require("datasets", extra="hf").load_dataset("zalando-datasets/fashion_mnist")
    except (MissingExtraError, OSError, ValueError, RuntimeError) as error:
        raise BellaError(
            f"Fashion-MNIST is neither in {FOLDER} nor to be had from the hub "
            f"({type(error).__name__}): `apt install dataset-fashion-mnist`, or pass the folder "
            "that holds its four *-ubyte.gz files."
        ) from error
    return [
        (
            np.stack([np.asarray(image) for image in loaded[part]["image"]]),
            np.asarray(loaded[part]["label"], np.uint8),
        )
        for part in ("train", "test")
    ]


def _with_noise(images: np.ndarray) -> np.ndarray:
    """The images with Gaussian noise of a fixed seed, clipped to 0..255."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).numpy()
    return np.clip(images + 255 * NOISE * noise, 0, 255).round().astype(np.uint8)


def fashion_mnist(
    preprocess: Preprocess,
    folder: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, ArrayImages]:
    """The parts of Fashion-MNIST.

    ``train`` and ``validation`` are a stratified split of the 60,000 training images (54,000 and
    6,000), ``test`` the 10,000 test images. ``corrupted`` is ``test`` under severe Gaussian noise
    of a fixed seed, with the same labels in the same order: a shifted test set on which a network
    should be less certain.

    Args:
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        folder: where the four ``*-ubyte.gz`` files are, or the same unpacked; without it, Debian's
            folder, or else the Hugging Face hub.
        limit: how many training images to keep, in equal shares of each class (rounded).
        seed: of the split and of the images kept.

    Raises:
        BellaError: the files are not there or cannot be read, or ``limit`` is not positive.
    """
    if limit is not None and limit < 1:
        raise BellaError(f"limit={limit} must be a positive number of training images.")
    if folder is None and not FOLDER.is_dir():
        (images, labels), (test_images, test_labels) = _from_hub()
    else:
        (images, labels), (test_images, test_labels) = _from_folder(Path(folder or FOLDER))
    parts = with_validation(ArrayImages(images, labels.tolist(), CLASSES, preprocess), seed)
    train = parts["train"]
    if limit is not None and limit < len(train):
        share = limit / len(train)
        kept = stratified_split(train.labels, {"kept": share, "left": 1 - share}, seed)["kept"]
        parts["train"] = train.select(kept)
    plain = preprocess.plain()
    return parts | {
        "test": ArrayImages(test_images, test_labels.tolist(), CLASSES, plain),
        "corrupted": ArrayImages(_with_noise(test_images), test_labels.tolist(), CLASSES, plain),
    }


FASHION_MNIST = DataSet(
    "fashion-mnist",
    "Fashion-MNIST",
    "image",
    "70,000 grey images of clothes, 28x28 pixels, 10 classes",
    {
        "train": "54,000 of the training images",
        "validation": "the other 6,000, drawn by class",
        "test": "the 10,000 test images",
        "corrupted": "the same under severe noise",
    },
    "apt install dataset-fashion-mnist (30 MB), or the four files of "
    "github.com/zalandoresearch/fashion-mnist",
    "Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017; MIT",
    lambda folder, preprocess, seed=0: fashion_mnist(preprocess, folder, seed=seed),
    {
        "idx, gzipped": tuple(f"{name}.gz" for name in FILES),
        "idx": FILES,
    },
)
