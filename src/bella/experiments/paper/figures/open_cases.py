"""Figure 13: cases of questions of the type "other"."""

from __future__ import annotations

from collections.abc import Mapping

from bella.experiments.paper.figures.cases import cases
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Product


def make(setup: Setup, *, answers: str | Mapping[str, str] = "", count: int = 4) -> Product:
    """Questions with open answers."""
    return cases(
        13,
        answers,
        ("other",),
        count,
        "The paper's four cases are of LLaVA-1.5 7B on VQA v2 and were chosen by hand (SVGD Bella "
        "answers three of them as most people do, and disputes the fourth).",
    )


ITEM = Item(
    make=make,
    title="cases: open questions, two systems and people",
    takes_data=False,
    trains=False,
    cost="a second, from the answers of two VQA runs",
)
