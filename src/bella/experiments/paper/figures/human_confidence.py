"""Figure 6: are people sure where the network is?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bella.errors import BellaError, require
from bella.experiments.paper.figures.common import finding
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value
from bella.experiments.paper.votes import systems_of, types_of
from bella.metrics import confidence_by_entropy
from bella.metrics.vqa import THRESHOLDS
from bella.report.charts import Axis, Line
from bella.report.plotted import Panel, plotted


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions that a network and people answered.

    Attributes:
        where: which, in words.
        system: who answered.
        entropy: of the network's answers in nats, (questions,).
        confidence: of the people, (questions,).
    """

    where: str
    system: str
    entropy: Tensor
    confidence: Tensor


def make(
    setup: Setup,
    *,
    answers: str | Mapping[str, str] = "",
    thresholds: Sequence[float] = THRESHOLDS,
) -> Product:
    """People's confidence where the network's entropy is low, and where it is high."""
    asked = of_answers(answers) if answers else of_experts(setup)
    panels, said, rows, notes = [], [], [], []
    for one in asked:
        low, high = confidence_by_entropy(one.entropy, one.confidence, thresholds)
        rows += rows_of(one, thresholds, low, high)
        panel = panel_of(one, thresholds, low, high)
        panels.append(panel)
        said.append(
            f"{panel.title}: "
            + "; ".join(f"{line.name} {line.y[0]:.0%} to {line.y[-1]:.0%}" for line in panel.lines)
        )
        notes.append(agreement(one, low, high))
    columns = (
        Column("on"),
        Column("system"),
        Column("threshold", "nats", "{:.1f}"),
        Column("confidence, low entropy", "%", "{:.1f}"),
        Column("confidence, high entropy", "%", "{:.1f}"),
        Column("answers, low", form="{:,.0f}"),
        Column("answers, high", form="{:,.0f}"),
    )
    people = (
        "The people are those who answered the questions."
        if answers
        else "The people are the experts who looked at the cells: each cell has their probability "
        "of a defect (0, 1/3, 2/3 or 1), and their confidence is the larger of it and its rest."
    )
    return Product(
        title="Figure 6: the network's entropy and people's confidence",
        shows=(
            "Answers are parted by a threshold on the network's entropy; for each threshold the "
            "mean confidence of people (the share who gave the most frequent answer) among answers "
            f"below it and above it. {people}"
        ),
        sheet=Sheet(columns, rows),
        comparable=(
            "The paper prints a picture and no numbers: LLaVA-1.5 7B on VQA v2, ten people a "
            "question, thresholds from 0.1 to 0.8."
        ),
        pictures=[
            Picture(
                "",
                "Mean confidence of people, by the threshold on the network's entropy. "
                + ". ".join(said)
                + ".",
                plotted(panels),
            )
        ],
        notes=notes,
    )


def of_answers(answers: str | Mapping[str, str]) -> list[Asked]:
    """From answers to questions about images.

    Raises:
        BellaError: nobody was asked beside the network.
    """
    found = []
    systems = systems_of(answers)
    for kind in types_of(systems):
        for system, rows in systems.items():
            own = [
                row
                for row in rows
                if row["type"] == kind and row.get("human_confidence") is not None
            ]
            if own:
                entropy, confidence = (
                    torch.tensor([float(row[name]) for row in own], dtype=torch.float64)
                    for name in ("entropy", "human_confidence")
                )
                found.append(Asked(kind, system, entropy, confidence))
    if not found:
        raise BellaError(
            "No question was answered by several people, so nothing is known of their confidence: "
            "take answers on a set such as VQA v2, or leave --option answers out for solar cells."
        )
    return found


def of_experts(setup: Setup) -> list[Asked]:
    """From images that experts gave a probability: the test part and those in doubt.

    Raises:
        BellaError: the images have none.
    """
    task, compared = setup.task, setup.compare()
    parts = ("test", *task.words.unscored)
    certain: list[Tensor] = []
    for part in parts:
        known = getattr(task.part(part, 0), "probability", None)
        if known is None:
            raise BellaError(
                f"Nobody says how sure people were of {part} of {task.title}: this figure needs "
                "elpv, or answers to questions (--option answers=...)."
            )
        probability = torch.tensor(list(known), dtype=torch.float64)
        certain.append(torch.maximum(probability, 1 - probability))
    return [
        Asked(
            f"{task.name}, {' and '.join(parts)}",
            title,
            torch.cat([compared.said(name)[part][0].entropy.double() for part in parts]),
            torch.cat(certain),
        )
        for name, title in compared.titles.items()
    ]


def rows_of(
    one: Asked, thresholds: Sequence[float], low: Tensor, high: Tensor
) -> list[list[Value]]:
    """The numbers behind one panel."""
    return [
        [
            one.where,
            one.system,
            threshold,
            100 * below,
            100 * above,
            float((one.entropy <= threshold).sum()),
            float((one.entropy > threshold).sum()),
        ]
        for threshold, below, above in zip(thresholds, low.tolist(), high.tolist(), strict=True)
    ]


def panel_of(one: Asked, thresholds: Sequence[float], low: Tensor, high: Tensor) -> Panel:
    """One panel: a line below the threshold, and one above it."""
    lines = []
    for place, (name, values) in enumerate((("low entropy", low), ("high entropy", high))):
        points = [
            (x, y) for x, y in zip(thresholds, values.tolist(), strict=True) if math.isfinite(y)
        ]
        if points:
            x, y = map(list, zip(*points, strict=True))
            lines.append(Line(name, x, y, place, "marked"))
    return Panel(
        f"{one.where}: {one.system}",
        Axis("threshold on the entropy (nats)"),
        Axis("people's confidence", "percent"),
        lines,
    )


def agreement(one: Asked, low: Tensor, high: Tensor) -> str:
    """Whether people are surer where the network is."""
    both = torch.isfinite(low) & torch.isfinite(high)
    ranks = require("scipy.stats", "fit").spearmanr(one.entropy, one.confidence).statistic
    ahead = int((low > high)[both].sum())
    return finding(
        "the network's entropy and people's confidence are negatively correlated, for every type "
        "of question",
        f"on {one.where} Spearman's rank correlation is {ranks:+.2f} over {len(one.entropy):,} "
        f"answers of {one.system}, and people are surer below the threshold at {ahead} of "
        f"{int(both.sum())} thresholds",
        bool(ranks < 0) if math.isfinite(ranks) else None,
    )


ITEM = Item(
    make=make,
    title="the network's entropy and people's confidence",
    methods=("svgd-bella", "lora"),
    data=("elpv",),
    instead="answers",
    train=200,
    others=200,
    cost="1 minute",
)
