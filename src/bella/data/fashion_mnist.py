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
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages
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
LARGEST = 2**28
"""Bytes that a file may unpack to; the largest of the four has 47 million."""
NOISE = 0.38
"""Standard deviation of the noise in ``corrupted``, in units of the pixels' range: severity 5 of
ImageNet-C's Gaussian noise (Hendrycks and Dietterich 2019)."""

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (n, 28, 28) and labels (n,), both uint8."""


class FashionMnist(LabelledImages):
    """Fashion-MNIST images in memory: ``.images`` is a list of uint8 arrays (28, 28)."""

    columns: ClassVar[tuple[str, ...]] = ("images", "labels")

    def __init__(self, images: np.ndarray, labels: Sequence[int], preprocess: Preprocess):
        super().__init__([], labels, CLASSES, preprocess)
        self.images = list(images)

    def image(self, index: int) -> Image.Image:
        """The picture itself, before preprocessing."""
        return Image.fromarray(self.images[index])


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped idx file.

    Raises:
        BellaError: the file is missing, cut short, of another kind, or beyond any reason.
    """
    try:
        with gzip.open(io.BytesIO(read_bytes(path))) as file:
            content = file.read(LARGEST + 1)
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise BellaError(f"{path} cannot be read as a gzipped idx file ({error}).") from error
    if (zeros, kind) != (0, 8) or len(content) != 4 + 4 * rank + math.prod(shape):
        raise BellaError(f"{path} is not a gzipped idx file of bytes: fetch it anew.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _from_folder(folder: Path) -> tuple[Arrays, Arrays]:
    train, test = (
        (
            read_idx(folder / f"{part}-images-idx3-ubyte.gz"),
            read_idx(folder / f"{part}-labels-idx1-ubyte.gz"),
        )
        for part in ("train", "t10k")
    )
    return train, test


def _from_hub() -> tuple[Arrays, Arrays]:
    try:
        loaded = require("datasets", extra="hf").load_dataset("zalando-datasets/fashion_mnist")
    except (MissingExtraError, OSError, ValueError, RuntimeError) as error:
        raise BellaError(
            f"Fashion-MNIST is neither in {FOLDER} nor to be had from the hub "
            f"({type(error).__name__}): `apt install dataset-fashion-mnist`, or pass the folder "
            "that holds its four *-ubyte.gz files."
        ) from error
    train, test = (
        (
            np.stack([np.asarray(image) for image in loaded[part]["image"]]),
            np.asarray(loaded[part]["label"], np.uint8),
        )
        for part in ("train", "test")
    )
    return train, test


def _with_noise(images: np.ndarray) -> np.ndarray:
    """The images with Gaussian noise of a fixed seed, clipped to 0..255."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).numpy()
    return np.clip(images + 255 * NOISE * noise, 0, 255).round().astype(np.uint8)


def fashion_mnist(
    preprocess: Preprocess,
    folder: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, FashionMnist]:
    """The parts of Fashion-MNIST.

    ``train`` and ``validation`` are a stratified split of the 60,000 training images (54,000 and
    6,000), ``test`` the 10,000 test images. ``corrupted`` is ``test`` under severe Gaussian noise
    of a fixed seed, with the same labels in the same order: a shifted test set on which a network
    should be less certain.

    Args:
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        folder: where the four ``*-ubyte.gz`` files are; without it, Debian's folder, or else the
            Hugging Face hub.
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
    parts = FashionMnist(images, labels.tolist(), preprocess).split(
        {"train": 0.9, "validation": 0.1}, seed
    )
    train = parts["train"]
    if limit is not None and limit < len(train):
        share = limit / len(train)
        kept = stratified_split(train.labels, {"kept": share, "left": 1 - share}, seed)["kept"]
        parts["train"] = train.select(kept)
    plain = preprocess.plain()
    return parts | {
        "test": FashionMnist(test_images, test_labels.tolist(), plain),
        "corrupted": FashionMnist(_with_noise(test_images), test_labels.tolist(), plain),
    }
