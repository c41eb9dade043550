"""Digits: ten classes that a pre-trained network learns in seconds, whole copies of it too."""

from __future__ import annotations

from typing import Any

from bella.experiments.tasks.task import Task, fixed, opener


def digits_task() -> Task:
    """Handwritten digits of 8x8 pixels, shown at 32; there is no shift but corruptions."""
    from bella.data import open_data

    open_lite = opener("efficientnet-lite0", 10, 32)
    parts: dict[str, Any] = open_data("digits", open_lite(0).preprocess)
    return Task(
        "digits",
        "Digits (8x8 pixels, shown at 32), EfficientNet-Lite0",
        open_lite,
        parts,
        fixed(parts),
        {},
        {"epochs": 3, "learning_rate": 1e-3},
    )
