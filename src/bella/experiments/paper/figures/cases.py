"""Cases: what two systems and people say of the same questions about images."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bella.errors import BellaError
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value
from bella.experiments.paper.votes import Rows, systems_of, types_of
from bella.metrics import vqa_normalised
from bella.report.pictures import new_figure

SYSTEMS = 2
USUAL = (("lora-ensemble",), ("svgd-bella", "repulsive"))
"""Names of the paper's two, in a comparison of ours."""
WIDTHS = (0.17, 0.25, 0.21, 0.21, 0.16)
"""Shares of a picture's width: image, question, two systems, people."""
LINE = (None, 26, 22, 22, 17)
"""Letters a line of each."""


def cases(
    number: int,
    answers: str | Mapping[str, str],
    wanted: Sequence[str],
    count: int,
    comparable: str,
) -> Product:
    """A table of questions for each type, as a picture and as text.

    Args:
        number: of the paper's figure.
        answers: see `systems_of`.
        wanted: types of questions.
        count: of cases a type.
        comparable: what the paper's cases are.

    Raises:
        BellaError: fewer than two systems, or they answered other questions.
    """
    if count < 1:
        raise BellaError(f"count={count}: give a whole number of at least 1.")
    systems = systems_of(answers)
    if len(systems) < SYSTEMS:
        raise BellaError(
            f"Cases set two systems side by side, and there is {len(systems)}: give "
            "answers={NAME: FILE, OTHER: FILE}."
        )
    first, second = two_of(list(systems))
    pictures, rows = [], []
    kinds = types_of(systems, wanted)
    for kind in kinds:
        chosen = chosen_of(systems[first], systems[second], kind, count)
        rows += [[kind, *words_of(*pair)] for pair in chosen]
        pictures.append(
            Picture(
                kind.replace("/", "-") if len(kinds) > 1 else "",
                f"{len(chosen)} {kind} questions with the answers of {first}, of {second} and of "
                "people; the table below has the same words.",
                drawn(chosen, first, second),
            )
        )
    columns = [Column(name) for name in ("type", "question", first, second, "people", "image")]
    return Product(
        title=f"Figure {number}: what two systems and people say",
        shows=(
            "Questions that the two systems answer differently, those whose mutual information "
            "differs most; filled up with the most disputed ones where fewer differ. Nobody chose "
            "them by who is right. In brackets the entropy and the mutual information in nats; ✓ "
            "where the answer is an exact match."
        ),
        sheet=Sheet(columns, rows),
        comparable=comparable,
        pictures=pictures,
    )


def two_of(systems: Sequence[str]) -> list[str]:
    """The paper's two, Ensemble Bella and SVGD Bella, where they are there; else the first two."""
    usual = [name for names in USUAL for name in names if name in systems]
    return usual if len(usual) == SYSTEMS else list(systems)[:SYSTEMS]


Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def chosen_of(ours: Rows, theirs: Rows, kind: str, count: int) -> list[Pair]:
    """The cases of a type, by a rule that does not look at who is right.

    Raises:
        BellaError: the systems answered other questions.
    """
    others = {(row["image"], row["question"]): row for row in theirs}
    pairs: list[Pair] = [
        (row, others[key])
        for row in ours
        if row["type"] == kind and (key := (row["image"], row["question"])) in others
    ]
    if not pairs:
        raise BellaError(f"The two systems answered no common question of the type {kind}.")

    def rank(pair: Pair) -> tuple[bool, float]:
        one, other = pair
        differ = vqa_normalised(one["answer"]) != vqa_normalised(other["answer"])
        mi = [float(row["mutual_information"]) for row in pair]
        return differ, abs(mi[0] - mi[1]) if differ else max(mi)

    return sorted(pairs, key=rank, reverse=True)[:count]


def words_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Value]:
    """A case in words: the question, both answers, the people's, the image's file."""
    said = [
        row["answer"]
        + (" ✓" if row.get("exact_match") else "")
        + f" ({row['entropy']:.3f} / {row['mutual_information']:.4f})"
        for row in (one, other)
    ]
    votes = Counter(one["people"]).most_common(5)
    total = len(one["people"])
    people = ", ".join(f"{answer}: {number}/{total}" for answer, number in votes)
    return [one["question"], *said, people, Path(one["image"]).name]


def drawn(chosen: Sequence[Pair], first: str, second: str) -> Any:
    """A matplotlib figure: a row a case."""
    figure, axes = new_figure(10.5, 0.5 + 1.5 * len(chosen))
    panel = axes[0, 0]
    panel.set(xlim=(0, 1), ylim=(len(chosen), -0.35))
    panel.axis("off")
    left = [sum(WIDTHS[:place]) for place in range(len(WIDTHS))]
    heads = ("image", "question", *(f"{name}\n(entropy / MI, nats)" for name in (first, second)))
    for x, words in zip(left, (*heads, "people"), strict=True):
        panel.text(x, -0.08, words, fontsize=9, fontweight="bold", va="bottom")
    for place, pair in enumerate(chosen):
        panel.axhline(place, color="#c4c9d2", linewidth=0.8)
        question, one, other, people, _ = map(str, words_of(*pair))
        show(panel, Path(pair[0]["image"]), place, WIDTHS[0])
        one, other = (words.replace(" (", "\n(") for words in (one, other))
        people = people.replace(", ", "\n")
        for x, text, letters in zip(
            left[1:], (question, one, other, people), LINE[1:], strict=True
        ):
            lines = [part for line in text.splitlines() for part in textwrap.wrap(line, letters)]
            panel.text(x, place + 0.5, "\n".join(lines[:6]), fontsize=9, va="center")
    return figure


def show(panel: Any, path: Path, place: int, width: float) -> None:
    """A case's picture, as large as its cell allows."""
    try:
        image = Image.open(path).convert("RGB")
    except OSError:
        panel.text(0, place + 0.5, "the image is\nnot there", fontsize=8, va="center")
        return
    image.thumbnail((256, 256))
    inset = panel.inset_axes((0, place + 0.06, width * 0.9, 0.88), transform=panel.transData)
    inset.imshow(image, interpolation="nearest" if max(image.size) < 100 else None)
    inset.axis("off")
    inset.set_anchor("W")
