"""Figure 14: cases of yes/no and number questions."""

from __future__ import annotations

from collections.abc import Mapping

from bella.experiments.paper.figures.cases import cases
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Product


def make(setup: Setup, *, answers: str | Mapping[str, str] = "", count: int = 4) -> Product:
    """Questions with short answers."""
    return cases(
        14,
        answers,
        ("yes/no", "number"),
        count,
        "The paper's eight cases are of LLaVA-1.5 7B on VQA v2 and were chosen by hand (where SVGD "
        "Bella is wrong, its mutual information is the higher one).",
    )


ITEM = Item(
    make=make,
    title="cases: yes/no and number questions, two systems and people",
    takes_data=False,
    trains=False,
    cost="a second, from the answers of two VQA runs",
)
