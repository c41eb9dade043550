"""Fashion-MNIST: a pre-trained network on few images."""

from __future__ import annotations

from functools import cache
from typing import Any

from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Place, Task, draw, opener, whole

COUNTS = {"train": 1_000, "validation": 500}
"""Images that each seed draws."""


def fashion_task() -> Task:
    """Fashion-MNIST, 1,000 training images; noise is the shift.

    Each seed draws its training and validation images anew from all 60,000; the 1,000 test images
    and 1,000 under noise are the same for all.
    """
    from bella.data import fashion_mnist

    open_lite = opener("efficientnet-lite0", 10, 96)
    parts: dict[str, Any] = dict(fashion_mnist(open_lite(0).preprocess))
    pools: dict[str, Any] = {"clean": parts["train"].join([parts["validation"]])}
    pools |= {name: at_most(1_000, parts[name]) for name in ("test", "corrupted")}

    @cache
    def split(seed: int) -> dict[str, Place]:
        own = draw("clean", pools["clean"].labels, COUNTS, seed)
        return own | {name: whole(name, pools[name]) for name in ("test", "corrupted")}

    return Task(
        "fashion-mnist",
        "Fashion-MNIST, EfficientNet-Lite0",
        open_lite,
        pools,
        split,
        {"shift": "corrupted"},
        {"epochs": 3, "learning_rate": 1e-3},
    )
