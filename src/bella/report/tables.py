"""Tables of a comparison: for the terminal, for a page.

A method's figures stand by the part of the data that they are of: ``figures`` on the test images,
``parts`` on each other part by its name, ``costs``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from bella.console import shown_text
from bella.errors import BellaError
from bella.evaluation.evaluate import flat_name
from bella.files import read_json

Results = Mapping[str, Any]

FORMAT = 2
"""Of ``results.json``; another one is refused, because its figures stand elsewhere."""

TEST, COSTS = "figures", "costs"
"""Where a method's figures on the test images stand, and its costs."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        part: `TEST`, `COSTS`, or the name of another part of the data.
        figure: its name there.
        heading: over the column.
        form: of the number.
        disputes: whether it is a figure that one set of weights does not have.
    """

    part: str
    figure: str
    heading: str
    form: str
    disputes: bool = False

    def of(self, method: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """A method's mean, spread and values; ``None`` where there is no such figure."""
        place = method if self.part in (TEST, COSTS) else method.get("parts", {})
        return place.get(self.part, {}).get(self.figure)

    @property
    def name(self) -> str:
        """The figure's name among those of `bella.evaluate`."""
        return self.figure if self.part in (TEST, COSTS) else flat_name(self.part, self.figure)


ON_TEST = (
    Column(TEST, "accuracy", "accuracy", "{:.3f}"),
    Column(TEST, "nll", "NLL", "{:.3f}"),
    Column(TEST, "ece", "ECE", "{:.3f}"),
    Column(TEST, "brier", "Brier", "{:.3f}"),
    Column(TEST, "auroc_errors_entropy", "errors H", "{:.2f}"),
    Column(TEST, "auroc_errors_confidence", "errors 1-p", "{:.2f}"),
    Column(TEST, "auroc_errors_mi", "errors MI", "{:.2f}", disputes=True),
    Column(TEST, "mi_correct", "MI if right", "{:.3f}", disputes=True),
    Column(TEST, "mi_wrong", "MI if wrong", "{:.3f}", disputes=True),
    Column(TEST, "diversity", "diversity", "{:.3f}", disputes=True),
)
OF_COSTS = (
    Column(COSTS, "trainable", "trainable", "{:,.0f}"),
    Column(COSTS, "bytes_on_disk", "bytes", "{:,.0f}"),
    Column(COSTS, "seconds_training", "seconds", "{:.0f}"),
    Column(COSTS, "mb_training", "peak MB", "{:,.0f}"),
    Column(COSTS, "ms_predicting", "ms each", "{:.1f}"),
    Column(COSTS, "train_flops_ratio", "FLOPs cut", "{:.1f}x"),
)
FIRST_PAGE = ("accuracy", "nll", "ece", "auroc_errors_entropy", "trainable", "seconds_training")
"""Figures that a first page has room for, beside how each scored shift is noticed."""


def read_results(folder: Path) -> Results:
    """A comparison's ``results.json``.

    Raises:
        BellaError: there is none, it is damaged, or an earlier bella wrote it.
    """
    found = read_json(folder / "results.json")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BellaError(
            f"{folder / 'results.json'} has another form than this version of bella writes: run "
            "the comparison again."
        )
    return found


def on_other(results: Results) -> tuple[Column, ...]:
    """The columns of the shifted parts: how each is noticed, and what is right there."""
    shifts, unscored = results["shifts"], results["words"]["unscored"]
    noticed = [
        Column(name, figure, f"{name} {short}", "{:.2f}", disputes=short == "MI")
        for name in shifts
        for figure, short in (("auroc_entropy", "H"), ("auroc_mi", "MI"), ("auroc_novelty", "S"))
    ]
    scored = [
        Column(name, figure, f"{name} {short}", "{:.2f}")
        for name in shifts
        if name not in unscored
        for figure, short in (("accuracy", "acc"), ("nll", "NLL"))
    ]
    return (*noticed, *scored)


def sections(results: Results) -> dict[str, tuple[Column, ...]]:
    """The table's sections and their columns."""
    examples = results["words"]["examples"]
    return {
        f"on test {examples}": ON_TEST,
        f"on other {examples}": on_other(results),
        "costs": OF_COSTS,
    }


def rows(results: Results, columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Headings and entries: mean, and ± the spread over seeds. What a task lacks is left out."""
    methods = results["methods"].values()
    shown = [c for c in columns if any(c.of(method) is not None for method in methods)]
    lines = [[method["title"], *(entry(column, method) for column in shown)] for method in methods]
    return ["", *(column.heading for column in shown)], lines


def is_single(method: Mapping[str, Any]) -> bool:
    """Whether a method has one set of weights: then its mutual information is 0, and no score."""
    figure = method[TEST].get("mutual_information")
    return figure is not None and figure["mean"] == 0


def entry(column: Column, method: Mapping[str, Any]) -> str:
    """One entry of a table; a dash where a figure does not exist."""
    figure = column.of(method)
    if figure is None or figure["mean"] is None or (column.disputes and is_single(method)):
        return "-"
    text = column.form.format(figure["mean"])
    if figure["spread"] is not None and column.part != COSTS:
        text += " ±" + column.form.format(figure["spread"]).removeprefix("0")
    return text


def rich_table(results: Results) -> Group:
    """The table for a terminal, in its sections."""
    drawn = []
    for section, columns in sections(results).items():
        headings, lines = rows(results, columns)
        if len(headings) == 1:
            continue
        title = shown_text(f"{results['title']}, {section}")
        table = Table(title=title, title_justify="left")
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
        for line in lines:
            table.add_row(*map(shown_text, line))
        drawn.append(table)
    return Group(*drawn, f"Mean ± spread over {results['seeds']} seeds.")


def compact_table(results: Results) -> str:
    """The columns that a first page has room for."""
    first = [c for c in ON_TEST if c.figure in FIRST_PAGE]
    noticed = [
        c
        for c in on_other(results)
        if c.part not in results["words"]["unscored"] and c.figure.startswith("auroc_")
    ]
    costs = [c for c in OF_COSTS if c.figure in FIRST_PAGE]
    return markdown(*rows(results, (*first, *noticed, *costs)))


def markdown_table(results: Results) -> str:
    """The table for a page, in its sections."""
    found = {name: rows(results, columns) for name, columns in sections(results).items()}
    return "\n\n".join(
        markdown([section, *headings[1:]], lines)
        for section, (headings, lines) in found.items()
        if len(headings) > 1
    )


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table for a page, its first columns of words and the others of numbers."""
    out = ["| " + " | ".join(headings) + " |"]
    out.append("|" + "|".join([":--"] * words + ["--:"] * (len(headings) - words)) + "|")
    out += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(out)


def early_stop_markdown(results: Results, found: Sequence[Mapping[str, float]]) -> str:
    """What stopping early saves and changes (see `bella.evaluation.early_stop`), for a page."""
    columns = [c for c in (*ON_TEST, *on_other(results)) if c.name in found[0]]
    headings = ["bound on MI", "passes saved", *(column.heading for column in columns)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "--:|" * len(headings)]
    for row in found:
        entries = [f"{row['bound']:g}", f"{row['saved']:.1%}"]
        entries += [
            column.form.format(row[column.name])
            if row["bound"] == 0
            else f"{row[f'change_{column.name}']:+.4f}"
            for column in columns
        ]
        lines.append("| " + " | ".join(entries) + " |")
    return "\n".join(lines)
