"""Fashion-MNIST: a pre-trained network on few images."""

from __future__ import annotations

from typing import Any

from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Task, fixed, opener


def fashion_task() -> Task:
    """Fashion-MNIST, 1,000 training images; noise is the shift."""
    from bella.data import fashion_mnist

    open_lite = opener("efficientnet-lite0", 10, 96)
    parts: dict[str, Any] = dict(fashion_mnist(open_lite(0).preprocess, limit=1000))
    for name, count in (("validation", 500), ("test", 1000), ("corrupted", 1000)):
        parts[name] = at_most(count, parts[name])
    return Task(
        "fashion-mnist",
        "Fashion-MNIST, EfficientNet-Lite0",
        open_lite,
        parts,
        fixed(parts),
        {"shift": "corrupted"},
        {"epochs": 3, "learning_rate": 1e-3},
    )
