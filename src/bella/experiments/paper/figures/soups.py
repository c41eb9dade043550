"""Figure 10: entropy of right and of wrong answers of soups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from bella import metrics
from bella.experiments.paper.figures.common import (
    Doubts,
    density_figure,
    doubts,
    finding,
    raw,
    said_of,
    summary,
)
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Picture, Product

WORD = "entropy"
PUBLISHED_ON = "CLIP ViT-B/32 on CIFAR-10 and CIFAR-100"


def make(setup: Setup) -> Product:
    """One network of averaged weights for each row."""
    found = test_doubts(setup)
    return Product(
        title="Figure 10: entropy of soups",
        shows=(
            "A soup is one network whose weights are the mean of the particles'. Densities of its "
            "entropy on test examples: good is far left where it is right and far right where it "
            "is wrong."
        ),
        sheet=summary(found, WORD),
        comparable=(
            f"The paper prints a picture, of {PUBLISHED_ON}; the means of its entropies are in "
            "Table 7."
        ),
        pictures=[Picture("", said_of(found, WORD), density_figure(found, WORD))],
        notes=[*told_apart(found, setup), setup.averaging],
        more={"values": raw(found, WORD)},
    )


def test_doubts(setup: Setup) -> list[Doubts]:
    """The entropy of every row's answers to the test examples."""
    found = []
    for task in setup.tasks:
        compared = setup.compare(task)
        for name, title in compared.titles.items():
            for seed in range(setup.seeds):
                said = compared.said(name, seed)["test"]
                found.append(doubts(f"{task.name}, test", title, *said, "entropy", seed))
    return found


def aurocs(found: Sequence[Doubts], where: str) -> dict[str, tuple[float, float, float]]:
    """How well each system's uncertainty tells its errors: AUROC and 95% interval over other
    examples, each the mean over seeds."""
    parts: dict[str, list[tuple[float, float, float]]] = {}
    for one in found:
        if one.where == where:
            area = metrics.auroc(one.values, one.wrong)
            low, high = metrics.auroc_interval(one.values, one.wrong)
            parts.setdefault(one.system, []).append((area, low, high))
    return {
        system: (mean(o[0] for o in own), mean(o[1] for o in own), mean(o[2] for o in own))
        for system, own in parts.items()
    }


def as_well(ours: tuple[float, float, float], theirs: tuple[float, float, float]) -> bool | None:
    """Whether one AUROC is not below the interval of another; ``None`` where nothing is wrong."""
    known = math.isfinite(ours[0]) and math.isfinite(theirs[1])
    return ours[0] >= theirs[1] if known else None


def aurocs_said(of: Mapping[str, tuple[float, float, float]]) -> str:
    """The same in words."""
    return ", ".join(
        f"{title} {area:.3f} [{low:.3f}, {high:.3f}]" for title, (area, low, high) in of.items()
    )


def told_apart(found: list[Doubts], setup: Setup) -> list[str]:
    """Whether soups of low-rank particles tell their errors as well as those of whole networks."""
    notes = []
    named = {method.name: method.title for method in setup.methods}
    low = [named[n] for n in ("lora-ensemble-soup", "svgd-bella-soup") if n in named]
    whole = [named[n] for n in ("ensemble-soup", "svgd-soup") if n in named]
    for where in dict.fromkeys(one.where for one in found):
        of = aurocs(found, where)
        notes.append(
            finding(
                "soups of Bella do as well as soups of whole networks, with far fewer parameters "
                "trained (their densities look alike)",
                f"the AUROCs of the entropy for errors on {where}, with 95% intervals, are "
                + aurocs_said(of),
                as_well(max(of[t] for t in low), max(of[t] for t in whole))
                if low and whole
                else None,
                setup.seeds,
            )
        )
    return notes


ITEM = Item(
    make=make,
    title="entropy of right and of wrong answers of soups",
    methods=("lora-ensemble-soup", "ensemble-soup", "svgd-bella-soup", "svgd-soup"),
    data=("digits",),
    train=200,
    others=200,
    cost="2 minutes",
)
