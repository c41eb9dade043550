"""Table 4: accuracy under the corruptions of CIFAR-10-C, laid upon any images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bella.data.corruptions import SMALLEST, corruptions_named
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Product, Sheet
from bella.experiments.paper.rows import BASIC, CONTROLS, CREDIT
from bella.experiments.paper.tables.common import (
    OTHER_DATA,
    average_picture,
    precision_note,
    shift_sheet,
)
from bella.experiments.tasks.shifts import with_corruptions

KINDS = (
    *("contrast", "gaussian_blur", "gaussian_noise", "impulse_noise"),
    *("pixelate", "shot_noise", "spatter", "speckle_noise"),
)
"""Those of the paper's table."""

PUBLISHED = Sheet(
    (
        Column("CIFAR-10-C"),
        *(Column(kind.replace("_", " "), "%", "{:.2f}") for kind in (*KINDS, "average")),
    ),
    (
        ("Single base", 91.78, 90.58, 62.96, 66.48, 77.94, 71.56, 92.14, 73.87, 78.53),
        ("VBL", 83.77, 89.34, 51.10, 52.08, 76.43, 60.94, 89.21, 63.19, 70.76),
        ("Ensemble Bella", 93.30, 93.30, 64.28, 74.36, 85.86, 75.73, 94.83, 75.24, 82.24),
        ("Ensemble base", 92.69, 91.92, 72.90, 79.08, 86.49, 78.83, 93.45, 80.49, 84.61),
        ("SVGD Bella", 94.69, 94.05, 67.89, 75.86, 88.70, 76.49, 94.85, 77.61, 83.77),
        ("SVGD base", 97.16, 93.02, 75.65, 81.49, 86.75, 81.56, 95.19, 82.89, 86.84),
    ),
)


def make(
    setup: Setup,
    *,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = (3,),
    size: int | None = None,
) -> Product:
    """Accuracy under each kind of corruption, the mean over severities.

    Args:
        setup: of images.
        kinds: names of `bella.data.corruptions.CORRUPTIONS`, or ``all``.
        severities: of each, 1 to 5.
        size: pixels of the shorter side when images are corrupted; the network's where that is
            large enough, else the smallest that is.

    Raises:
        BellaError: no images, an unknown kind, a severity or a size out of range.
    """
    chosen = corruptions_named(kinds)
    opened: Any = setup.task.open(0)
    if size is None and min(opened.preprocess.height, opened.preprocess.width) < SMALLEST:
        size = SMALLEST
    task = with_corruptions(setup.task, chosen, severities, side=size)
    parts = {kind.replace("_", " "): [f"{kind}-{s}" for s in severities] for kind in chosen}
    sheet = shift_sheet(setup.compare(task), parts)
    strengths = ", ".join(map(str, severities))
    return Product(
        title=f"Table 4: corruptions, {setup.task.title}",
        shows=(
            "Accuracy on the test images under each kind of corruption (the mean over severities "
            f"{strengths} of 5), their average, and the mean NLL."
        ),
        sheet=sheet,
        theirs=PUBLISHED,
        comparable=(
            f"{OTHER_DATA} The paper does not say its severity; CIFAR-10-C's images have 32 pixels "
            f"a side, and these are corrupted at the network's size (at least {SMALLEST}). {CREDIT}"
        ),
        pictures=[average_picture(sheet, task.title)],
        notes=[setup.averaging, precision_note(setup.task)],
    )


ITEM = Item(
    make=make,
    title="accuracy under corruptions",
    methods=(*BASIC, *CONTROLS),
    data=("fashion-mnist",),
    train=200,
    others=200,
    cost="minutes (not measured)",
)
