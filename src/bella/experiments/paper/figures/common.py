"""What several figures share: uncertainties of right and wrong answers, and what became of the
paper's finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from bella import metrics
from bella.data.corruptions import SMALLEST, Corruption, corrupted, corruptions_named
from bella.data.labelled import LabelledImages
from bella.errors import BellaError
from bella.evaluation.evaluate import collect
from bella.experiments.methods import Method
from bella.experiments.paper.item import Compared
from bella.experiments.paper.product import Column, Sheet, Value
from bella.experiments.paper.rows import averages_logits
from bella.experiments.tasks.task import Task
from bella.prediction.predictive import Predictive
from bella.report.charts import FEWEST, Chart, Line, density_chart
from bella.report.plotted import plotted

MANY = 2
"""Systems whose right and wrong answers one panel can show together."""

VERDICTS = {
    True: "It held here",
    False: "It did not hold here",
    None: "Nothing can be said of it here",
}


def finding(paper: str, here: str, held: bool | None, seeds: int = 1) -> str:
    """The paper's finding beside ours, and whether it held.

    Args:
        paper: what it finds.
        here: what was found here, with numbers.
        held: whether that is the same; ``None`` where it cannot be told.
        seeds: of how many.
    """
    how = "one seed" if seeds == 1 else f"the means of {seeds} seeds"
    said = "" if held is None else f" (by {how}: an observation, and no test)"
    return f"The paper finds that {paper}. Here {here}. {VERDICTS[held]}{said}."


def standard_error(count: int) -> str:
    """How far a share of so many examples is from that of all, at the most, in a sentence."""
    return (
        f"Of {count} examples a share has a standard error of up to {50 / count**0.5:.0f} points."
    )


# ------------------------------------------------------------ what systems said


@dataclass(frozen=True, eq=False)
class Doubts:
    """How uncertain a system was of each of its answers on one part of the data.

    Attributes:
        where: the part, in words.
        system: who answered.
        values: uncertainties in nats, (answers,).
        wrong: which answers are, (answers,).
        seed: of the training.
    """

    where: str
    system: str
    values: Tensor
    wrong: Tensor
    seed: int = 0


def doubts(
    where: str, system: str, predictive: Predictive, labels: Tensor, of: str, seed: int = 0
) -> Doubts:
    """Of a predictive: ``of`` is ``mutual_information`` or ``entropy``."""
    return Doubts(where, system, getattr(predictive, of), predictive.predictions != labels, seed)


def under_corruption(
    compared: Compared, name: str, seed: int, kind: str, severity: int
) -> tuple[Predictive, Tensor]:
    """What a row says of the test images under a corruption.

    Images of a network that takes small ones are corrupted at 96 pixels, where severities grow as
    they should.

    Raises:
        BellaError: the data are no images, or the row keeps no posterior.
    """
    images = images_of(compared.task, "test", seed)
    small = min(images[0][0].shape[-2:]) < SMALLEST
    data = corrupted(images, kind, severity, side=SMALLEST if small else None)
    average = compared.average if averages_logits(method_of(compared, name)) else "probs"
    found: tuple[Predictive, Tensor] = collect(
        compared.posterior(name, seed), data, average=average, draws=draws_of(compared, name)
    )
    return found


def corruptible(task: Task, kinds: Sequence[str], severity: int) -> list[str]:
    """Corruptions by name, before anything is trained.

    Raises:
        BellaError: the data are no images, or there is no such corruption or severity.
    """
    images_of(task, "test", 0)
    return [Corruption(kind, severity).kind for kind in corruptions_named(kinds)]


def images_of(task: Task, part: str, seed: int, most: int | None = None) -> LabelledImages:
    """The images of a part, or the first of them in equal shares of each class.

    Raises:
        BellaError: they are no images.
    """
    images: Any = task.part(part, seed)
    if not isinstance(images, LabelledImages):
        raise BellaError(f"{task.title} holds no images, and this figure needs some.")
    if most is None or most >= len(images):
        return images
    places: dict[int, list[int]] = {}
    for place, label in enumerate(images.labels):
        places.setdefault(label, []).append(place)
    turns = sorted(
        (turn / len(own), label, place)
        for label, own in places.items()
        for turn, place in enumerate(own)
    )
    return images.select(sorted(place for *_, place in turns[:most]))


def method_of(compared: Compared, name: str) -> Method:
    """One of the rows."""
    return next(method for method in compared.methods if method.name == name)


def draws_of(compared: Compared, name: str) -> int:
    """Draws of a row's predictions; 1 of point particles."""
    return int(getattr(method_of(compared, name), "draws", 1))


def scored_shifts(task: Task) -> dict[str, str]:
    """The shifted parts whose labels say what is right, by the name that their figures carry."""
    return {name: part for name, part in task.shifts.items() if name not in task.words.unscored}


# ------------------------------------------------------------ densities


def density_figure(found: Sequence[Doubts], word: str, columns: int = 2) -> Any:
    """A matplotlib figure of densities: a panel for each part of the data with the right and the
    wrong answers of two systems, or one for each of the two where there are more systems."""
    charts = density_charts(found, word)
    if not charts:
        raise BellaError(
            f"There is no {word} to draw: fewer than {FEWEST} answers of a kind, or all the same. "
            "Take more data, or rows of several particles."
        )
    ends = [x for chart in charts for line in chart.lines for x in (line.x[0], line.x[-1])]
    span = min(ends), max(ends)  # the same for all: panels are compared
    return plotted([replace(chart, x=replace(chart.x, span=span)) for chart in charts], columns)


def density_charts(found: Sequence[Doubts], word: str) -> list[Chart]:
    """The panels of `density_figure`."""
    charts = []
    for where in dict.fromkeys(one.where for one in found):
        own = [one for one in found if one.where == where]
        systems = list(dict.fromkeys(one.system for one in own))
        groups = {
            f"{system}, {kind}": torch.cat([one.values[one.wrong == wrong] for one in theirs])
            for kind, wrong in (("wrong", True), ("right", False))
            for system in systems
            if (theirs := [one for one in own if one.system == system])
        }
        if len(systems) <= MANY:
            charts += _chart(where, groups, word, outlined=", right")
            continue
        for kind in ("wrong", "right"):
            some = {
                name.removesuffix(f", {kind}"): values
                for name, values in groups.items()
                if name.endswith(f", {kind}")
            }
            charts += _chart(f"{where}: {kind} answers", some, word, outlined=" (")
    return charts


def _chart(title: str, groups: Mapping[str, Tensor], word: str, outlined: str) -> list[Chart]:
    """A panel, or none where no density can be drawn; groups whose name holds ``outlined`` are
    lines that their dashes tell apart."""
    known = {name: values for name, values in groups.items() if len(values)}
    if not known:
        return []
    chart = density_chart("density", title, "", known, word, title)
    lines: list[Line] = [
        replace(line, kind="line") if outlined in line.name else line for line in chart.lines
    ]
    return [replace(chart, lines=lines)] if lines else []


def summary(found: Sequence[Doubts], word: str) -> Sheet:
    """Medians of right and of wrong answers, and how well the uncertainty tells the two apart."""
    columns = (
        Column("on"),
        Column("system"),
        Column("answers", form="{:,.0f}"),
        Column("wrong", form="{:,.0f}"),
        Column(f"median {word} if right", "nats", "{:.2g}"),
        Column(f"median {word} if wrong", "nats", "{:.2g}"),
        Column("tells errors", "AUROC", "{:.2f}"),
    )
    rows: list[list[Value]] = []
    for where, system in _answered(found):
        own = [one for one in found if (one.where, one.system) == (where, system)]
        rows.append(
            [
                where,
                system,
                [float(len(one.values)) for one in own],
                [float(one.wrong.sum()) for one in own],
                [_median(one.values[~one.wrong]) for one in own],
                [_median(one.values[one.wrong]) for one in own],
                [metrics.auroc(one.values, one.wrong) for one in own],
            ]
        )
    return Sheet(columns, rows)


def raw(found: Sequence[Doubts], word: str) -> Sheet:
    """Every answer's uncertainty."""
    columns = (
        Column("on"),
        Column("system"),
        Column("seed"),
        Column("answer"),
        Column(word, "nats", "{:.4g}"),
    )
    rows: list[list[Value]] = [
        [one.where, one.system, one.seed, "wrong" if wrong else "right", float(f"{value:.4g}")]
        for one in found
        for value, wrong in zip(one.values.tolist(), one.wrong.tolist(), strict=True)
    ]
    return Sheet(columns, rows)


def _answered(found: Sequence[Doubts]) -> list[tuple[str, str]]:
    """Parts, and on each its systems."""
    pairs = dict.fromkeys((one.where, one.system) for one in found)
    wheres = list(dict.fromkeys(where for where, _ in pairs))
    return sorted(pairs, key=lambda pair: wheres.index(pair[0]))


def middle(found: Iterable[Doubts], system: str, where: str, wrong: bool) -> float:
    """The mean over seeds of the median uncertainty of a system's right or wrong answers."""
    own = [one for one in found if (one.system, one.where) == (system, where)]
    return mean(_median(one.values[one.wrong == wrong]) for one in own)


def _median(values: Tensor) -> float:
    return median(values.tolist()) if len(values) else float("nan")


def said_of(found: Sequence[Doubts], word: str) -> str:
    """The medians in a sentence, for those who do not see the picture."""
    parts = []
    for where, system in _answered(found):
        right, wrong = (middle(found, system, where, kind) for kind in (False, True))
        parts.append(f"{system} on {where}: {right:.2g} if right, {wrong:.2g} if wrong")
    return f"Densities of {word}. Medians in nats: {'; '.join(parts)}."
