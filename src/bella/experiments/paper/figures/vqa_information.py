"""Figure 12: mutual information of wrong answers to questions about images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bella.errors import BellaError
from bella.experiments.paper.figures.common import (
    Doubts,
    density_figure,
    finding,
    middle,
    raw,
    said_of,
    summary,
)
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Picture, Product
from bella.experiments.paper.votes import Rows, systems_of, types_of

WORD = "mutual information"
TYPES = ("yes/no", "number", "other")


def make(setup: Setup, *, answers: str | Mapping[str, str] = "") -> Product:
    """What particles dispute, by type of question.

    Raises:
        BellaError: no system has particles that dispute anything.
    """
    given = systems_of(answers)
    several = {
        name: rows
        for name, rows in given.items()
        if any(row["mutual_information"] > 0 for row in rows)
    }
    if not several:
        raise BellaError(
            "There is no mutual information to draw: one network disputes nothing. Take answers of "
            "several particles."
        )
    found = vqa_doubts(several, "mutual_information", TYPES)
    systems = list(dict.fromkeys(one.system for one in found))
    kinds = list(dict.fromkeys(one.where for one in found))
    notes = []
    if alone := [name for name in given if name not in several]:
        notes.append(f"Not drawn, because one network disputes nothing: {', '.join(alone)}.")
    if len(systems) > 1:
        middles = {
            kind: [middle(found, system, kind, wrong=True) for system in systems] for kind in kinds
        }
        ours = _place(systems, ("repulsive", "svgd", "bella"))
        theirs = _place(systems, ("ensemble",))
        both = ours is not None and theirs is not None and ours != theirs
        notes.append(
            finding(
                "wrong answers of SVGD Bella are disputed more than those of Ensemble Bella",
                "the median mutual informations of wrong answers are "
                + "; ".join(
                    f"{kind}: "
                    + ", ".join(f"{s} {v:.2g}" for s, v in zip(systems, values, strict=True))
                    for kind, values in middles.items()
                ),
                all(values[ours] > values[theirs] for values in middles.values())  # type: ignore[index]
                if both
                else None,
            )
        )
    return Product(
        title="Figure 12: mutual information of answers to questions about images",
        shows=(
            "Densities of what the particles dispute, token by token, in their answers; right is "
            "an exact match (an accuracy of 1). Good is far right for wrong answers."
        ),
        sheet=summary(found, WORD),
        comparable=(
            "The paper prints a picture and no numbers: LLaVA-1.5 7B on VQA v2, yes/no and number "
            "questions; its particles are whole fine-tunings that differ in seed and settings."
        ),
        pictures=[Picture("", said_of(found, WORD), density_figure(found, WORD))],
        notes=notes,
        more={"values": raw(found, WORD)},
    )


def vqa_doubts(systems: Mapping[str, Rows], of: str, wanted: Sequence[str]) -> list[Doubts]:
    """How uncertain every system was of its answers to the questions of each type.

    Raises:
        BellaError: answers to questions that nobody answered: none is right or wrong.
    """
    found = []
    for kind in types_of(systems, wanted):
        for system, rows in systems.items():
            own = [row for row in rows if row["type"] == kind]
            if any(row.get("exact_match") is None for row in own):
                raise BellaError(
                    f"The answers of {system} do not say what is right: they need the people's."
                )
            values = torch.tensor([float(row[of]) for row in own], dtype=torch.float64)
            wrong = torch.tensor([not row["exact_match"] for row in own], dtype=torch.bool)
            found.append(Doubts(kind, system, values, wrong))
    return found


def _place(systems: list[str], words: tuple[str, ...]) -> int | None:
    """The one system whose name begins with one of these words or ends with it."""
    found = [
        place
        for place, name in enumerate(systems)
        if any(name.startswith(word) or name.endswith(word) for word in words)
    ]
    return found[0] if len(found) == 1 else None


ITEM = Item(
    make=make,
    title="mutual information of wrong answers to questions about images",
    takes_data=False,
    trains=False,
    cost="a second, from the answers of a VQA run",
)
