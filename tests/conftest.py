"""Data sets in small, for tests of whatever reads them."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and types in the annotations of these modules are checked at every call. It must stand
# before the first import of bella.
CHECKED = (
    "bella.metrics",
    "bella.likelihood",
    "bella.transport",
    "bella.prediction.predictive",
    "bella.posteriors",
    "bella.evaluation.temperature",
)
install_import_hook(CHECKED, "shapes.checked")

# Otherwise PyTorch warns once a process, and a test fails or not by what ran before it.
torch.set_warn_always(True)


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion_folder(tmp_path):
    """Fashion-MNIST's four files in small: 40 training and 10 test images per class."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 400), ("t10k", 100)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(
            tmp_path / f"{part}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8)
        )
    return tmp_path
