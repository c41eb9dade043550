"""What a table or figure of the paper comes to here: numbers, words and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

Value = str | float | None | Sequence[float]
"""An entry: words, a number, a number a seed; ``None`` where there is none."""


@dataclass(frozen=True)
class Column:
    """A column of numbers or words.

    Attributes:
        name: over it.
        unit: of its numbers.
        form: of one number.
    """

    name: str
    unit: str = ""
    form: str = "{}"

    @property
    def heading(self) -> str:
        """The name with the unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Sheet:
    """A table: rows of entries under columns; the first columns are of words."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]

    @property
    def words(self) -> int:
        """How many columns, from the left, hold words alone."""
        count = 0
        for place in range(len(self.columns)):
            if not all(isinstance(row[place], str | None) for row in self.rows):
                break
            count += 1
        return max(count, 1)

    def entries(self) -> list[list[str]]:
        """The rows as text: of several seeds the mean, and ± their standard deviation."""
        return [
            [shown(value, column) for value, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]


def shown(value: Value, column: Column) -> str:
    """An entry as text; a dash where there is none."""
    if isinstance(value, str):
        return value
    middle, spread = middle_of(value), spread_of(value)
    if middle is None:
        return "-"
    text = column.form.format(middle)
    return text if spread is None else f"{text} ± {column.form.format(spread)}"


def middle_of(value: Value) -> Any:
    """A number, or the mean over seeds; ``None`` where there is none. Words stay."""
    if isinstance(value, str):
        return value
    known = _known(value)
    if isinstance(value, Sequence):
        return mean(known) if known else None
    return value if known else None


def spread_of(value: Value) -> float | None:
    """The standard deviation over seeds; ``None`` of words or of one number."""
    known = [] if isinstance(value, str) else _known(value)
    return stdev(known) if len(known) > 1 else None


def _known(value: float | Sequence[float] | None) -> list[float]:
    values = value if isinstance(value, Sequence) else [value]
    return [float(one) for one in values if one is not None and not math.isnan(one)]


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        name: one word, of several pictures; empty of the one.
        alt: what it shows, in a sentence with numbers.
        figure: of matplotlib.
    """

    name: str
    alt: str
    figure: Any = field(repr=False)


@dataclass(frozen=True)
class Product:
    """A table or figure of the paper, made of somebody's network and data.

    Attributes:
        title: what it is, and of what.
        shows: what it shows and how to read it, in a sentence or two.
        sheet: the numbers.
        theirs: the paper's own.
        comparable: how far the two can be compared, in words.
        pictures: of the numbers.
        notes: what a reader should know, in sentences.
        more: further tables, by name: a value a seed, the points of a curve.
    """

    title: str
    shows: str
    sheet: Sheet
    comparable: str
    theirs: Sheet | None = None
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    more: Mapping[str, Sheet] = field(default_factory=dict)
