"""Tables of a comparison: for the terminal, for a page, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

Results = Mapping[str, Any]

PARTS: dict[str, dict[str, tuple[str, str]]] = {
    "on test images": {
        "accuracy": ("accuracy", "{:.3f}"),
        "nll": ("NLL", "{:.3f}"),
        "ece": ("ECE", "{:.3f}"),
        "brier": ("Brier", "{:.3f}"),
        "auroc_errors_entropy": ("errors H", "{:.2f}"),
        "auroc_errors_mi": ("errors MI", "{:.2f}"),
        "mi_correct": ("MI if right", "{:.3f}"),
        "mi_wrong": ("MI if wrong", "{:.3f}"),
        "diversity": ("diversity", "{:.3f}"),
    },
    "on other images": {
        "auroc_doubt_entropy": ("doubt H", "{:.2f}"),
        "auroc_doubt_mi": ("doubt MI", "{:.2f}"),
        "auroc_shift_entropy": ("shift H", "{:.2f}"),
        "auroc_shift_mi": ("shift MI", "{:.2f}"),
        "accuracy_shift": ("shift acc", "{:.2f}"),
        "nll_shift": ("shift NLL", "{:.2f}"),
    },
    "costs": {
        "trainable": ("trainable", "{:,.0f}"),
        "bytes_on_disk": ("bytes", "{:,.0f}"),
        "seconds_training": ("seconds", "{:.0f}"),
        "mb_training": ("peak MB", "{:,.0f}"),
        "ms_predicting": ("ms/image", "{:.1f}"),
        "train_flops_ratio": ("FLOPs cut", "{:.1f}x"),
    },
}
"""The table's parts and their columns: figure, heading, format. What a task lacks is left out."""

COLUMNS = {name: column for part in PARTS.values() for name, column in part.items()}

DISAGREEMENT = (
    "auroc_errors_mi",
    "auroc_doubt_mi",
    "auroc_shift_mi",
    "mi_correct",
    "mi_wrong",
    "diversity",
)
"""Figures that one set of weights does not have."""

COSTS = tuple(PARTS["costs"])

COMPACT = (
    "accuracy",
    "nll",
    "ece",
    "auroc_errors_entropy",
    "auroc_shift_entropy",
    "auroc_shift_mi",
    "trainable",
    "seconds_training",
)
"""The columns that a first page has room for."""


def rows(results: Results, only: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: mean, and ± the spread over seeds."""
    methods = results["methods"]
    columns = {
        name: column
        for name, column in COLUMNS.items()
        if name in only and any(name in method["figures"] for method in methods.values())
    }
    lines = []
    for method in methods.values():
        cells = [method["title"]]
        for name, (_, form) in columns.items():
            cells.append(cell(method["figures"].get(name), form, name, single=is_single(method)))
        lines.append(cells)
    return ["", *(heading for heading, _ in columns.values())], lines


def is_single(method: Mapping[str, Any]) -> bool:
    """Whether a method has one set of weights: then its mutual information is 0, and no score."""
    figure = method["figures"].get("mutual_information")
    return figure is not None and figure["mean"] == 0


def cell(figure: Mapping[str, Any] | None, form: str, name: str, *, single: bool) -> str:
    """One cell; a dash where a figure does not exist."""
    if figure is None or figure["mean"] is None or (single and name in DISAGREEMENT):
        return "-"
    text = form.format(figure["mean"])
    if figure["spread"] is not None and name not in COSTS:
        text += " ±" + form.format(figure["spread"]).removeprefix("0")
    return text


def rich_table(results: Results) -> Group:
    """The table for a terminal, in its parts."""
    drawn = []
    for part, columns in PARTS.items():
        headings, lines = rows(results, tuple(columns))
        if len(headings) == 1:
            continue
        table = Table(title=f"{results['title']}, {part}", title_justify="left")
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        drawn.append(table)
    return Group(*drawn, f"Mean ± spread over {results['seeds']} seeds.")


def compact_table(results: Results) -> str:
    """The columns of `COMPACT`, for a page."""
    return _markdown(*rows(results, COMPACT))


def markdown_table(results: Results) -> str:
    """The table for a page, in its parts."""
    parts = {part: rows(results, tuple(columns)) for part, columns in PARTS.items()}
    return "\n\n".join(
        _markdown([part, *headings[1:]], lines)
        for part, (headings, lines) in parts.items()
        if len(headings) > 1
    )


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = ["| " + " | ".join(headings) + " |"]
    out.append("|" + "|".join([":--", *["--:"] * (len(headings) - 1)]) + "|")
    out += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(out)


def early_stop_markdown(rows: Sequence[Mapping[str, float]]) -> str:
    """What stopping early saves and changes (see `bella.evaluation.early_stop`), for a page."""
    shown = {name: COLUMNS[name] for name in COLUMNS if name in rows[0]}
    headings = ["bound on MI", "passes saved", *(heading for heading, _ in shown.values())]
    lines = ["| " + " | ".join(headings) + " |", "|" + "--:|" * len(headings)]
    for row in rows:
        cells = [f"{row['bound']:g}", f"{row['saved']:.1%}"]
        cells += [
            form.format(row[name]) if row["bound"] == 0 else f"{row[f'change_{name}']:+.4f}"
            for name, (_, form) in shown.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


QUESTIONS: tuple[tuple[str, str, bool], ...] = (
    ("accuracy", "accuracy", True),
    ("nll", "NLL", False),
    ("ece", "ECE", False),
    ("auroc_errors_entropy", "finding its own errors (AUROC, entropy)", True),
    ("auroc_doubt_entropy", "finding cells that experts doubted (AUROC, entropy)", True),
    ("auroc_shift_entropy", "noticing the shift by entropy (AUROC)", True),
    ("auroc_shift_mi", "noticing the shift by mutual information (AUROC)", True),
    ("nll_shift", "NLL under the shift", False),
)
"""What a reader wants to know: figure, its name in a sentence, whether more is better."""


def verdict(results: Results) -> list[str]:
    """In words, what the particles bought and what they did not.

    A difference counts if it is larger than the sum of both spreads over the seeds.
    """
    if results["seeds"] == 1:
        return ["One seed shows no spread, so no difference can be told from chance: run three."]
    methods = results["methods"]
    said = []
    pairs = (
        ("bella", "ensemble"),
        ("bella", "single+temperature"),
        ("bella", "vbl"),
        ("bella", "lora+temperature"),
        ("bella", "lora-ensemble"),
        ("bella-svgd", "lora-ensemble"),
        ("lora-ensemble", "lora"),
        ("rank1", "single"),
        ("rank1", "single+temperature"),
        ("ssvi", "vi"),
        ("ssvi-0.05", "vi"),
        ("bella", "probe"),
        ("bella", "probe-ensemble"),
    )
    for ours, other in pairs:
        if ours in methods and other in methods:
            said.append(sentence(methods[ours], methods[other]))
    return said


def sentence(ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """One method against another, over all questions."""
    better: list[str] = []
    worse: list[str] = []
    same: list[str] = []
    for name, words, more in QUESTIONS:
        a, b = ours["figures"].get(name), other["figures"].get(name)
        if a is None or b is None or a["mean"] is None or b["mean"] is None:
            continue
        if is_single(other) and name in DISAGREEMENT:
            b = {"mean": 0.5, "spread": 0.0}  # one set of weights cannot disagree with itself
        margin = (a["spread"] or 0.0) + (b["spread"] or 0.0)
        gain = a["mean"] - b["mean"]
        if abs(gain) <= margin:
            same.append(words)
        else:
            text = f"{words} ({b['mean']:.3f} to {a['mean']:.3f})"
            (better if (gain > 0) == more else worse).append(text)
    parts = [
        f"{label}: {', '.join(group)}"
        for label, group in (("better", better), ("worse", worse), ("within the spread", same))
        if group
    ]
    return f"{ours['title']} against {other['title']}. " + "; ".join(parts) + "."
