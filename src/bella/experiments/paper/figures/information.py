"""Figure 2: mutual information of right and of wrong answers on other and on corrupted data."""

from __future__ import annotations

from bella.experiments.paper.figures.common import (
    Doubts,
    corruptible,
    density_figure,
    doubts,
    finding,
    middle,
    raw,
    said_of,
    scored_shifts,
    summary,
    under_corruption,
)
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Picture, Product

WORD = "mutual information"
OF = "mutual_information"


def make(setup: Setup, *, corruption: str = "brightness", severity: int = 5) -> Product:
    """Where two systems' particles contradict each other."""
    for task in setup.tasks:
        corruptible(task, (corruption,), severity)
    found: list[Doubts] = []
    for task in setup.tasks:
        compared = setup.compare(task)
        for name, title in compared.titles.items():
            for seed in range(setup.seeds):
                said = compared.said(name, seed)
                for part in scored_shifts(task).values():
                    found.append(doubts(f"{task.name}, {part}", title, *said[part], OF, seed))
                where = f"{task.name}, {corruption} {severity}"
                under = under_corruption(compared, name, seed, corruption, severity)
                found.append(doubts(where, title, *under, OF, seed))
    return Product(
        title="Figure 2: mutual information of right and of wrong answers",
        shows=(
            "Densities of what the particles dispute, on data of another kind and under a "
            "corruption. Good is far right for wrong answers (they should be disputed) and far "
            "left for right ones. Only classes that were trained on count."
        ),
        sheet=summary(found, WORD),
        comparable=(
            "The paper prints a picture and no numbers: CLIP ViT-B/32 on CAMELYON17's other "
            "hospital and on CIFAR-10-C (brightness, severity 5)."
        ),
        pictures=[Picture("", said_of(found, WORD), density_figure(found, WORD))],
        notes=[*on_par(found, setup.seeds), setup.averaging],
        more={"values": raw(found, WORD)},
    )


def on_par(found: list[Doubts], seeds: int) -> list[str]:
    """Whether the first system disputes its wrong answers as much as the second one does."""
    systems = list(dict.fromkeys(one.system for one in found))
    if len(systems) < 2:
        return []
    first, second = systems[:2]
    here, held = [], []
    for where in dict.fromkeys(one.where for one in found):
        ours, theirs = (middle(found, system, where, wrong=True) for system in (first, second))
        if ours == ours and theirs == theirs:
            here.append(f"{ours:.2g} and {theirs:.2g} nats on {where}")
            held.append(ours >= theirs)
    return [
        finding(
            "wrong answers of SVGD Bella have as much mutual information as those of SVGD on all "
            "weights, or slightly more",
            f"the medians of {first} and {second} are {'; '.join(here) or 'not both there'}"
            + (f" (at least as much in {sum(held)} of {len(held)})" if len(held) > 1 else ""),
            sum(held) * 2 > len(held) if held else None,
            seeds,
        )
    ]


ITEM = Item(
    make=make,
    title="mutual information of right and of wrong answers",
    methods=("svgd-bella", "svgd"),
    data=("elpv", "digits"),
    train=200,
    others=200,
    cost="about 6 minutes",
)
