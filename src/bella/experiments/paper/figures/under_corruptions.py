"""Figure 9: mutual information under eight corruptions."""

from __future__ import annotations

from collections.abc import Sequence

from bella.experiments.paper.figures.common import (
    Doubts,
    corruptible,
    density_figure,
    doubts,
    raw,
    said_of,
    summary,
    under_corruption,
)
from bella.experiments.paper.figures.information import OF, WORD, on_par
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Picture, Product

KINDS = (
    *("contrast", "gaussian_blur", "gaussian_noise", "impulse_noise"),
    *("pixelate", "shot_noise", "spatter", "speckle_noise"),
)
"""The paper's, in its order (Table 4)."""


def make(setup: Setup, *, kinds: Sequence[str] = KINDS, severity: int = 5) -> Product:
    """A panel for each corruption."""
    named = corruptible(setup.task, kinds, severity)
    compared = setup.compare()
    found: list[Doubts] = []
    for kind in named:
        for name, title in compared.titles.items():
            for seed in range(setup.seeds):
                under = under_corruption(compared, name, seed, kind, severity)
                found.append(doubts(kind.replace("_", " "), title, *under, OF, seed))
    return Product(
        title=f"Figure 9: mutual information under corruptions, {setup.task.title}",
        shows=(
            f"Densities of what the particles dispute on test images under each corruption "
            f"(severity {severity}). Good is far right for wrong answers and far left for right "
            "ones; the column of AUROCs says how far apart the two lie."
        ),
        sheet=summary(found, WORD),
        comparable=(
            "The paper prints a picture and no numbers: CLIP ViT-B/32 on CIFAR-10-C; it does not "
            "say which severity."
        ),
        pictures=[Picture("", said_of(found, WORD), density_figure(found, WORD))],
        notes=[*on_par(found, setup.seeds), setup.averaging],
        more={"values": raw(found, WORD)},
    )


ITEM = Item(
    make=make,
    title="mutual information under eight corruptions",
    methods=("svgd-bella", "svgd"),
    data=("digits",),
    train=200,
    others=200,
    cost="3 minutes",
)
