"""Fashion-MNIST, from the Debian package ``dataset-fashion-mnist`` or a hub.

Source:
    Xiao et al. 2017. 60,000 training and 10,000 test images of 28x28 in 10 classes, MIT licence.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bella.data.folder import Transform
from bella.data.split import stratified_split
from bella.errors import BellaError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class ArrayImages(Dataset):
    """Grey images in an array (count, height, width), uint8."""

    def __init__(self, images: np.ndarray, labels: Sequence[int], preprocess: Transform):
        self.images = images
        self.labels = [int(label) for label in labels]
        self.classes = CLASSES
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocess(Image.fromarray(self.images[index])), self.labels[index]


def read_idx(path: Path) -> np.ndarray:
    """An array in the gzipped IDX format.

    Raises:
        BellaError: the file is damaged.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, 4)
        return np.frombuffer(content, np.uint8, math.prod(shape), 4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise BellaError(f"{path} is damaged ({error}): install it again.") from None


def fashion_mnist(
    preprocess: Transform,
    *,
    seed: int = 0,
    limit: int = 4000,
    test_limit: int = 2000,
    folder: Path = FOLDER,
) -> dict[str, ArrayImages]:
    """Parts of Fashion-MNIST.

    Args:
        preprocess: from a PIL image to a tensor.
        seed: decides the stratified choice of training and validation images.
        limit: number of training images; a fifth as many are for validation.
        test_limit: number of test images (the first ones of the test set).
        folder: where the IDX files are.

    Returns:
        ``train``, ``validation``, ``test`` and ``noisy``: the test images under Gaussian noise of
        standard deviation 50 of 255 and a fixed seed, a shift that nobody trained for.

    Raises:
        BellaError: the data are neither in ``folder`` nor on a hub that can be reached.
    """
    train_x, train_y, test_x, test_y = _read(folder)
    rest = len(train_y) - limit - limit // 5
    if limit < 50 or rest < 0:
        raise BellaError(f"limit={limit}: take from 50 to 50,000 training images.")
    shares = {"train": limit / len(train_y), "validation": limit / 5 / len(train_y)}
    if rest:
        shares["rest"] = 1 - sum(shares.values())
    split = stratified_split(train_y.tolist(), shares, seed)
    test_x, test_y = test_x[:test_limit], test_y[:test_limit]
    generator = torch.Generator().manual_seed(0)
    noise = 50 * torch.randn(test_x.shape, generator=generator).numpy()
    noisy = np.clip(test_x + noise, 0, 255).astype(np.uint8)
    return {
        "train": ArrayImages(train_x[split["train"]], train_y[split["train"]].tolist(), preprocess),
        "validation": ArrayImages(
            train_x[split["validation"]], train_y[split["validation"]].tolist(), preprocess
        ),
        "test": ArrayImages(test_x, test_y.tolist(), preprocess),
        "noisy": ArrayImages(noisy, test_y.tolist(), preprocess),
    }


def _read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if folder.is_dir():
        names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        a, b, c, d = (read_idx(folder / f"{name}-ubyte.gz") for name in names)
        return a, b, c, d
    try:
        import datasets

        hub = datasets.load_dataset("zalando-datasets/fashion_mnist")
    except Exception as error:
        raise BellaError(
            f"Fashion-MNIST is neither in {folder} nor on a hub ({type(error).__name__}): install "
            "Debian's package dataset-fashion-mnist, or log in to a network with a hub."
        ) from None
    arrays = []
    for part in ("train", "test"):
        arrays += [np.stack([np.asarray(image) for image in hub[part]["image"]])]
        arrays += [np.asarray(hub[part]["label"])]
    return arrays[0], arrays[1], arrays[2], arrays[3]
