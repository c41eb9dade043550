"""Charts as data: lines, axes and words. `bella.report.drawn` draws them, and any other may."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bella import metrics
from bella.errors import require
from bella.prediction.predictive import Predictive
from bella.report.tables import COSTS, TEST, Results

Said = tuple[Predictive, Tensor]
"""What was said of a part of the data, and its labels."""

FEWEST = 5
"""Values that make a density."""

FIRST = 10
"""Answers from which on a risk is drawn: of fewer it jumps."""

SHOWN = 4
"""Lines that a chart of systems shows unasked: more can be told apart by nobody."""

MARKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Coverages that a table of risks shows."""


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: with its unit.
        form: ``number``, ``percent`` (of values from 0 to 1), ``log`` or ``bare`` (no numbers).
        span: from where to where; ``None`` for all that is drawn.
        step: from one number to the next; chosen where it is ``None``.
    """

    title: str
    form: Literal["number", "percent", "log", "bare"] = "number"
    span: tuple[float, float] | None = None
    step: float | None = None


@dataclass(frozen=True)
class Line:
    """A line, an area or points.

    Attributes:
        name: in the legend.
        x: positions along the first axis.
        y: positions along the second.
        place: of its colour and mark; ``None`` for a faint line that only guides the eye.
        kind: how it is drawn.
        notes: what is said of each point when it is asked.
        asked: whether it is shown only when a reader asks for it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    place: int | None = 0
    kind: Literal["line", "marked", "area", "points"] = "line"
    notes: Sequence[str] = ()
    asked: bool = False


@dataclass(frozen=True)
class Numbers:
    """A table: of words in its first column and numbers in the others."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """What is drawn, and what is said of it.

    Attributes:
        name: one word, unique in a chapter.
        title: over it.
        says: how to read it.
        alt: what it shows, in a sentence with numbers.
        x: the first axis.
        y: the second.
        lines: what is drawn.
        numbers: behind it, for those who read rather than see.
    """

    name: str
    title: str
    says: str
    alt: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    numbers: Numbers


def reliability_chart(systems: Mapping[str, Said]) -> Chart:
    """Accuracy against confidence on the test part, a line a system; the first are shown."""
    lines = [Line("as right as it says", [0, 1], [0, 1], place=None)]
    rows, said = [], []
    for place, (title, (predictive, labels)) in enumerate(systems.items()):
        confidence, right, counts = metrics.reliability(predictive.probs, labels, bins=10)
        notes = [f"{title}: {n} answers" for n in counts]
        lines.append(Line(title, confidence, right, place, "marked", notes, place >= SHOWN))
        said.append(f"{title} {metrics.ece(predictive.probs, labels):.3f}")
        rows += [
            [title, f"{c:.1%}", f"{r:.1%}", f"{n:,}"]
            for c, r, n in zip(confidence, right, counts, strict=True)
        ]
    classes = next(iter(systems.values()))[0].probs.shape[1]
    return Chart(
        "reliability",
        "Is it right as often as it says?",
        "Answers are put into ten bins by their confidence. On the faint line, answers of 80% "
        "confidence are right 80% of the time; below it the network is too sure of itself."
        + _more(systems),
        f"Accuracy against confidence. Calibration errors (ECE): {', '.join(said)}.",
        Axis("confidence", "percent", (1 / classes - 0.02, 1.02)),
        Axis("right answers", "percent", (-0.02, 1.04)),
        lines,
        Numbers(("", "confidence", "right", "answers"), rows),
    )


def risk_chart(systems: Mapping[str, Said]) -> Chart:
    """The error rate of the answers that are given, against how many are: a line a system; the
    first are shown."""
    lines, rows, said = [], [], []
    for place, (title, (predictive, labels)) in enumerate(systems.items()):
        coverage, risk = metrics.risk_coverage(predictive.probs, labels, predictive.entropy)
        kept = _thinned(len(coverage))
        lines.append(
            Line(title, coverage[kept].tolist(), risk[kept].tolist(), place, asked=place >= SHOWN)
        )
        at = [max(1, round(mark * len(coverage))) - 1 for mark in MARKS]
        rows.append([title, *(f"{risk[i].item():.1%}" for i in at)])
        area = metrics.aurc(predictive.probs, labels, predictive.entropy)
        said.append(f"{title} {risk[-1].item():.1%} (area {area:.3f})")
    return Chart(
        "risk",
        "What is gained by leaving out the uncertain?",
        "Answers are given in the order of their entropy, the surest first. The lower the line, "
        "the better the network knows which of its answers to hold back." + _more(systems),
        "Share of wrong answers against the share that is answered. Where all are answered: "
        f"{', '.join(said)}.",
        Axis("answered", "percent", (0, 1.02)),
        Axis("wrong among those", "percent"),
        lines,
        Numbers(("wrong, if answered are", *(f"{mark:.0%}" for mark in MARKS)), rows),
    )


def _more(systems: Mapping[str, Said]) -> str:
    return " A touch on a name shows or hides it." if len(systems) > SHOWN else ""


def _thinned(count: int, most: int = 200) -> Tensor:
    """At most so many places, from the first risk that does not jump to all."""
    first = min(FIRST, count) - 1
    return torch.linspace(first, count - 1, min(most, count - first)).round().long().unique()


def dispute_chart(groups: Mapping[str, Predictive], title: str) -> Chart:
    """Densities of what the particles dispute, an area a group of examples.

    Densities are of log10 of the mutual information, by Gaussian kernels of Scott's width; of the
    entropy where there is one particle, which disputes nothing.

    Args:
        groups: by name, such as right answers, wrong ones and those on shifted examples.
        title: of the system.
    """
    disputed = any(bool((group.mutual_information > 0).any()) for group in groups.values())
    return density_chart(
        "disputes",
        "What do the particles dispute?" if disputed else "How uncertain is it?",
        "Mutual information is what is left of the uncertainty where every particle is sure of "
        "its own answer: high where they contradict each other, as they should on what they "
        "have never seen."
        if disputed
        else "One set of weights cannot contradict itself, so this is its entropy.",
        {
            name: group.mutual_information if disputed else group.entropy
            for name, group in groups.items()
        },
        "mutual information" if disputed else "entropy",
        title,
    )


def density_chart(
    name: str, title: str, says: str, groups: Mapping[str, Tensor], word: str, of: str
) -> Chart:
    """Densities of log10 of an uncertainty, by Gaussian kernels of Scott's width, an area a group.

    Args:
        name: of the chart.
        title: of the chart.
        says: how to read it.
        groups: by name, the uncertainties of a group's answers in nats, each (answers,).
        word: what they are.
        of: whose they are.
    """
    values = {group: _logs(own) for group, own in groups.items()}
    known = [x for x in values.values() if len(x)]
    low, high = min(x.min() for x in known), max(x.max() for x in known)
    grid = np.linspace(low - 0.3, high + 0.3, 160)
    lines, rows, few = [], [], []
    for place, (group, x) in enumerate(values.items()):
        middle = 10 ** np.quantile(x, (0.25, 0.5, 0.75)) if len(x) else ()
        rows.append([group, f"{len(x):,}", *(f"{value:.2g}" for value in middle)])
        if len(x) < FEWEST or np.ptp(x) == 0:
            few.append(f"{group} ({len(x)})")
            rows[-1] += ["-"] * (5 - len(rows[-1]))
            continue
        density = require("scipy.stats", "fit").gaussian_kde(x)(grid)
        lines.append(
            Line(f"{group} ({len(x):,})", (10**grid).tolist(), density.tolist(), place, "area")
        )
    middles = ", ".join(f"{row[0]} {row[3]}" for row in rows)
    return Chart(
        name,
        title,
        says + (f" Too few for a density: {', '.join(few)}." if few else ""),
        f"Densities of the {word} of {of}. Medians in nats: {middles}.",
        Axis(f"{word} (nats)", "log"),
        Axis("density", "bare"),
        lines,
        Numbers(("answers", "number", "lower quarter", "median", "upper quarter"), rows),
    )


def _logs(values: Tensor) -> np.ndarray:
    """log10 of uncertainties; what is below 1e-6 nats cannot be told from rounding."""
    return values.double().clamp_min(1e-6).log10().numpy()


def shift_chart(
    name: str,
    title: str,
    axis: str,
    curves: Mapping[str, Mapping[float, float]],
    says: str,
) -> Chart:
    """Accuracy against the strength of a shift or of an attack.

    Args:
        name: of the chart.
        title: of the chart.
        axis: what the strength is, with its unit.
        curves: by name, from strength to accuracy.
        says: how to read it.
    """
    strengths = sorted({strength for curve in curves.values() for strength in curve})
    rows = [
        [one, *(f"{curve[s]:.1%}" if s in curve else "-" for s in strengths)]
        for one, curve in curves.items()
    ]
    ends = [
        f"{one} from {curve[min(curve)]:.1%} to {curve[max(curve)]:.1%}"
        for one, curve in curves.items()
    ]
    return Chart(
        name,
        title,
        says,
        f"Share of right answers against {axis}: {', '.join(ends)}.",
        Axis(axis),
        Axis("right answers", "percent", (-0.02, 1.02)),
        [
            Line(one, list(curve), list(curve.values()), place, "marked")
            for place, (one, curve) in enumerate(curves.items())
        ],
        Numbers((axis, *(f"{s:g}" for s in strengths)), rows),
    )


def cost_chart(results: Results, order: Iterable[str] = ()) -> Chart | None:
    """What the test NLL costs in seconds of training, a point a method; for three or more.

    Args:
        results: of a comparison.
        order: titles of methods, in the order of their colours in other charts.
    """
    points: dict[str, tuple[float, float, float]] = {}
    for method in results["methods"].values():
        nll, seconds = method[TEST]["nll"]["mean"], method[COSTS].get("seconds_training", {})
        if nll is not None and seconds.get("mean") is not None:
            points[method["title"]] = (seconds["mean"], nll, method[COSTS]["trainable"]["mean"])
    if len(points) < 3:
        return None
    order = dict.fromkeys([*(title for title in order if title in points), *points])
    points = {title: points[title] for title in order}
    lines = [
        Line(title, [x], [y], place, "points", [f"{title}: {trained:,.0f} trained parameters"])
        for place, (title, (x, y, trained)) in enumerate(points.items())
    ]
    rows = [[t, f"{x:,.1f}", f"{y:.3f}", f"{n:,.0f}"] for t, (x, y, n) in points.items()]
    best = min(points, key=lambda title: points[title][1])
    quick = min(points, key=lambda title: points[title][0])
    return Chart(
        "cost",
        "What does it cost?",
        "The lower, the better it predicts; the further left, the sooner it is trained. Means over "
        "the seeds.",
        f"Test NLL against seconds of training. Lowest NLL: {best} ({points[best][1]:.3f} in "
        f"{points[best][0]:,.0f} s); soonest: {quick} ({points[quick][1]:.3f} in "
        f"{points[quick][0]:,.0f} s).",
        Axis("training (seconds)"),
        Axis("test NLL (nats)"),
        lines,
        Numbers(("", "seconds", "NLL", "trained parameters"), rows),
    )


def training_chart(history: Sequence[Mapping[str, float]]) -> Chart | None:
    """Losses over the epochs of a run; for two epochs or more."""
    lines, rows = [], []
    for place, (name, words) in enumerate(
        (("loss", "training NLL of a particle"), ("validation_nll", "validation NLL, together"))
    ):
        points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            lines.append(Line(words, x, y, place, "marked"))
            rows.append([words, f"{y[0]:.3f}", f"{min(y):.3f}", f"{y[-1]:.3f}"])
    if not lines:
        return None
    return Chart(
        "training",
        "How did the training go?",
        "Training loss is a particle's own; on the validation part all particles answer together.",
        "Losses over the epochs. " + "; ".join(f"{r[0]} from {r[1]} to {r[3]}" for r in rows) + ".",
        Axis("epoch", step=max(1, round(len(history) / 6))),
        Axis("NLL (nats)"),
        lines,
        Numbers(("", "first", "lowest", "last"), rows),
    )
