"""The tables and figures of the Bella paper on anybody's network and data.

One file an item, in `tables/` or `figures/`, and its line here.
"""

from __future__ import annotations

from bella.errors import BellaError
from bella.experiments.paper.figures import (
    attacks,
    diversity,
    human_confidence,
    information,
    landscapes,
    laplace,
    open_cases,
    other_images,
    parameters,
    rank_and_particles,
    short_cases,
    under_corruptions,
    vqa_information,
)
from bella.experiments.paper.figures import soups as soup_entropy
from bella.experiments.paper.item import Item
from bella.experiments.paper.tables import (
    accuracy,
    corruptions,
    cost,
    domains,
    hyperparameters,
    layers,
    repulsion,
    similarity,
    soups,
    vqa,
)

__all__ = ["FIGURES", "KINDS", "TABLES", "Item", "items_named"]

TABLES: dict[str, Item] = {
    "1": accuracy.ITEM,
    "2": cost.ITEM,
    "3": domains.ITEM,
    "4": corruptions.ITEM,
    "5": vqa.SHORT,
    "6": layers.ITEM,
    "7": soups.ITEM,
    "8": repulsion.ITEM,
    "9": similarity.ITEM,
    "10": vqa.OTHER,
    "11": hyperparameters.ITEM,
}
"""By the paper's number."""

FIGURES: dict[str, Item] = {
    "1": landscapes.ITEM,
    "2": information.ITEM,
    "3": attacks.ITEM,
    "4": rank_and_particles.ITEM,
    "5": parameters.ITEM,
    "6": human_confidence.ITEM,
    "7": diversity.ITEM,
    "8": other_images.ITEM,
    "9": under_corruptions.ITEM,
    "10": soup_entropy.ITEM,
    "11": laplace.ITEM,
    "12": vqa_information.ITEM,
    "13": open_cases.ITEM,
    "14": short_cases.ITEM,
}
"""By the paper's number."""

KINDS = {"table": TABLES, "figure": FIGURES}


def items_named(kind: str, wanted: str) -> dict[str, Item]:
    """Items by their number; ``all`` for all of them.

    Raises:
        BellaError: there is none of that number.
    """
    known = KINDS[kind]
    if wanted == "all":
        return dict(known)
    if wanted not in known:
        raise BellaError(f"There is no {kind} {wanted}: choose {', '.join(known)}, or all.")
    return {wanted: known[wanted]}
