"""Data sets in small, for tests of whatever reads them, and libraries that are installed apart."""

from __future__ import annotations

import gc
import gzip
import importlib.util
import signal
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# How long a test takes, and how long its first example takes to make, is the machine's business:
# in a fresh checkout hypothesis reads all of our modules for constants while others compute.
settings.register_profile("bella", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bella")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would the runs that tests stop by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# timm and open_clip import torchvision, which has no build for a torch without CUDA: it asks for
# two operators that such a torch lacks, and breaks whoever looks for it. So `make test` installs
# the three in a folder of their own, which only tests see, and the operators, which nobody calls,
# are declared here. A torchvision that belongs to this torch is left alone.
if importlib.util.find_spec("torchvision") is None:
    sys.path.append(str(Path(sys.prefix) / "zoo"))
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# Shapes and types in the annotations of these modules are checked at every call. It must stand
# before the first import of bella.
CHECKED = (
    "bella.metrics",
    "bella.likelihood",
    "bella.transport",
    "bella.prediction.mixture",
    "bella.prediction.pool",
    "bella.prediction.predictive",
    "bella.posteriors.divergences",
    "bella.posteriors.full",
    "bella.posteriors.laplace",
    "bella.posteriors.rank1",
    "bella.posteriors.sparse.active",
    "bella.posteriors.sparse.criteria",
    "bella.posteriors.sparse.topology",
    "bella.evaluation.conformal",
    "bella.evaluation.abstention",
    "bella.evaluation.landscape",
    "bella.prediction.temperature",
)
install_import_hook(CHECKED, "shapes.checked")

# Otherwise PyTorch warns once a process, and a test fails or not by what ran before it.
torch.set_warn_always(True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those of many tests: of workers that take files in this order, none
    waits long for another's last one."""
    root = Path(__file__).parent
    counts = Counter(item.path for item in items)

    def turn(item: pytest.Item) -> tuple[bool, int, Path]:
        path = item.path.relative_to(root)
        return item.get_closest_marker("long") is None, -counts[item.path], path

    items.sort(key=turn)


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


@pytest.fixture(scope="module", autouse=True)
def nothing_to_look_through_again():
    """What is imported stays, and is a million objects: half a second for each full collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nobody_s_accelerator():
    """Accelerate keeps one state for the process, which a test's Accelerator may not leave behind
    for the next one."""
    yield
    if "accelerate" in sys.modules:
        state = sys.modules["accelerate"].state
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
