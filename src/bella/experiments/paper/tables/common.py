"""What several tables say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bella.experiments.paper.item import Compared
from bella.experiments.paper.product import Column, Picture, Sheet, Value, middle_of
from bella.experiments.paper.rows import THEIRS
from bella.experiments.tasks.task import Task
from bella.report.charts import Axis
from bella.report.plotted import dots

PAPER = Column("in the paper")
"""What the paper calls a row."""

OTHER_DATA = (
    "The two tables share their rows and not their data: the paper's network is CLIP ViT-B/32 and "
    "its data are whole. Compare how rows differ, not the numbers themselves."
)


def percent(shares: Sequence[float]) -> list[float]:
    """Shares in percent."""
    return [100 * share for share in shares]


def mean_of(columns: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several figures, seed by seed."""
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def precision_note(task: Task, part: str = "test") -> str:
    """How exact an accuracy on so many examples is, in a sentence."""
    count = len(task.split(0)[part][1])
    error = 100 * math.sqrt(0.1 * 0.9 / count)
    return (
        f"{task.title}: {count} {task.words.examples} of {part}. An accuracy near 90% of so many "
        f"has a standard error of {error:.1f} points by itself, and rows see the same ones."
    )


def scored_shifts(task: Task) -> list[str]:
    """The shifted parts whose labels count."""
    return [part for name, part in task.shifts.items() if name not in task.words.unscored]


def shift_sheet(
    compared: Compared, parts: Mapping[str, Sequence[str]], home: str | None = None
) -> Sheet:
    """Accuracy on shifted parts, their average, and the mean NLL there, a row a method.

    Args:
        compared: the rows.
        parts: of the data, by the heading of the column that is their mean.
        home: heading of a first column, of the test part, which then counts in the average.
    """
    names = ([home] if home else []) + list(parts)
    columns = [
        Column("method"),
        PAPER,
        *(Column(name, "%", "{:.1f}") for name in (*names, "average")),
        Column("NLL under the shifts", "nats", "{:.3f}"),
    ]
    rows: list[list[Value]] = []
    for name, title in compared.titles.items():
        columns_of = [percent(compared.figures(name)["accuracy"])] if home else []
        losses = []
        for some in parts.values():
            figures = [compared.figures(name, part) for part in some]
            columns_of.append(percent(mean_of([own["accuracy"] for own in figures])))
            losses.append(mean_of([own["nll"] for own in figures]))
        row: list[Value] = [title, THEIRS.get(name, ""), *columns_of]
        rows.append([*row, mean_of(columns_of), mean_of(losses)])
    return Sheet(columns, rows)


def average_picture(sheet: Sheet, title: str) -> Picture:
    """The column ``average`` of a sheet, a dot a row."""
    at = [column.name for column in sheet.columns].index("average")
    values: dict[str, list[float]] = {str(row[0]): row[at] for row in sheet.rows}  # type: ignore[misc]
    said = ", ".join(f"{name} {middle_of(own):.1f}" for name, own in values.items())
    figure = dots(values, Axis("average accuracy (%)"), title)
    return Picture("", f"Average accuracy in percent, {title}: {said}.", figure)
