"""CIFAR-10 at 96 pixels: few photographs of eight classes; corruptions and two further classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Place, Task, Words, draw, opener, whole
from bella.models import Opened

LEFT_OUT = ("automobile", "cat")
"""Classes whose test images are the shift; each is like one that stays (truck, dog)."""
COUNTS = {"train": 2_000, "validation": 500}
"""Images that each seed draws."""
FEW = {"train": 800, "validation": 200}
"""The same for a network whose every step costs ten times as much."""
CORRUPTED = {"noise": "gaussian_noise", "blur": "defocus_blur", "fog": "fog", "pixels": "pixelate"}
"""One corruption of each of ImageNet-C's groups, by the name that its figures carry."""
SEVERITY = 3


def cifar10_task(folder: str | Path | None = None) -> Task:
    """CIFAR-10 of eight classes, 2,000 training images; the other two classes are a shift.

    Each seed draws its training and validation images anew from all 40,000; test images are the
    same 1,000 for all, and 500 of them are seen under four corruptions of severity 3 as well.

    Args:
        folder: where CIFAR-10 lies, in any of its forms: the batches, parquet files, or folders.

    Raises:
        BellaError: it is not there.
        MissingExtraError: the package that corrupts images is not installed.
    """
    open_lite = opener("efficientnet-lite0", 8, 96)
    return seen_by(open_lite, "cifar10", "EfficientNet-Lite0", folder, COUNTS, 1e-3, {"gain": 10.0})


def cifar10_vit_task(folder: str | Path | None = None) -> Task:
    """As `cifar10_task`, at 112 pixels and seen by a vision transformer, ViT-S/14, whose twelve
    blocks are all adapted; 800 training images.

    Args:
        folder: see there.

    Raises:
        BellaError: see there.
        MissingExtraError: see there; or the package that brings the network is not installed.
    """
    return seen_by(opener("vit-s14", 8, 112), "cifar10-vit", "ViT-S/14", folder, FEW, 5e-4, {})


def seen_by(
    open_it: Callable[[int], Opened],
    name: str,
    title: str,
    folder: str | Path | None,
    counts: Mapping[str, int],
    learning_rate: float,
    build: Mapping[str, Any],
) -> Task:
    """The task for a network.

    Args:
        open_it: opens the network for a seed.
        name: of the task.
        title: of the network.
        folder: of CIFAR-10.
        counts: of the images that each seed draws.
        learning_rate: of every method.
        build: of particles, see `Task.build`.
    """
    from bella.data import open_data
    from bella.data.corruptions import corrupted

    parts = open_data("cifar10", open_it(0).preprocess, folder=folder, left_out=LEFT_OUT)
    pools: dict[str, Any] = {
        "clean": parts["train"].join([parts["validation"]]),
        "test": at_most(1_000, parts["test"]),
        "left_out": at_most(500, parts["left_out"]),
    }
    some = at_most(500, pools["test"])
    pools |= {name: corrupted(some, kind, SEVERITY) for name, kind in CORRUPTED.items()}

    @cache
    def split(seed: int) -> dict[str, Place]:
        own = draw("clean", pools["clean"].labels, counts, seed)
        return own | {name: whole(name, pools[name]) for name in pools if name != "clean"}

    return Task(
        name,
        f"CIFAR-10 ({counts['train']:,} training images of eight classes), {title}",
        open_it,
        pools,
        split,
        {name: name for name in ("left_out", *CORRUPTED)},
        {"epochs": 3, "learning_rate": learning_rate},
        dict(build),
        words=Words(
            noticing={"left_out": "noticing classes that nobody trained on"},
            unscored=("left_out",),
        ),
    )
