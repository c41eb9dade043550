"""CIFAR-10 at 96 pixels: few photographs of eight classes; corruptions and two further classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bella.data.sets.base import at_most
from bella.data.split import stratified_split
from bella.experiments.tasks.task import Place, Task, Words, opener, whole

LEFT_OUT = ("automobile", "cat")
"""Classes whose test images are the shift; each is like one that stays (truck, dog)."""
POOL = 3_000
"""Training images to draw from, a stratified choice."""
CORRUPTED = {"noise": "gaussian_noise", "blur": "defocus_blur", "fog": "fog", "pixels": "pixelate"}
"""One corruption of each of ImageNet-C's groups, by the name that its figures carry."""
SEVERITY = 3
FRACTIONS = {"train": 2 / 3, "validation": 1 / 6, "rest": 1 / 6}


def cifar10_task(folder: str | Path | None = None) -> Task:
    """CIFAR-10 of eight classes, 2,000 training images; the other two classes are a shift.

    Each seed draws its training and validation images anew from the same 3,000; test images are the
    same 1,000 for all, and 500 of them are seen under four corruptions of severity 3 as well.

    Args:
        folder: where CIFAR-10 lies, in any of its forms: the batches, parquet files, or folders.

    Raises:
        BellaError: it is not there.
        MissingExtraError: the package that corrupts images is not installed.
    """
    from bella.data import open_data
    from bella.data.corruptions import corrupted

    open_lite = opener("efficientnet-lite0", 8, 96)
    parts = open_data("cifar10", open_lite(0).preprocess, folder=folder, left_out=LEFT_OUT)
    pools: dict[str, Any] = {
        "clean": at_most(POOL, parts["train"]),
        "test": at_most(1_000, parts["test"]),
        "left_out": at_most(500, parts["left_out"]),
    }
    some = at_most(500, pools["test"])
    pools |= {name: corrupted(some, kind, SEVERITY) for name, kind in CORRUPTED.items()}

    def split(seed: int) -> dict[str, Place]:
        drawn = stratified_split(pools["clean"].labels, FRACTIONS, seed)
        own = {name: ("clean", drawn[name]) for name in ("train", "validation")}
        return own | {name: whole(name, pools[name]) for name in pools if name != "clean"}

    return Task(
        "cifar10",
        "CIFAR-10 (2,000 training images of eight classes), EfficientNet-Lite0",
        open_lite,
        pools,
        split,
        {name: name for name in ("left_out", *CORRUPTED)},
        {"epochs": 3, "learning_rate": 1e-3},
        {"gain": 10.0},
        words=Words(
            noticing={"left_out": "noticing classes that nobody trained on"},
            unscored=("left_out",),
        ),
    )
