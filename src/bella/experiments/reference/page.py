"""What `bella reference` leaves: a table to read, one for programs, and a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from bella.evaluation.reference import CONVERGED
from bella.files import write_whole
from bella.report.pictures import beside_reference

COLUMNS = {
    "agreement": ("agreement", "{:.3f}"),
    "total_variation": ("total variation", "{:.4f}"),
    "nll": ("NLL", "{:.3f}"),
    "weight_variance": ("variance of weights", "{:.3f}"),
    "prediction_variance": ("of predictions", "{:.3f}"),
    "seconds": ("seconds", "{:.0f}"),
}
"""Figures by name, with their heading and how they are written."""


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Write ``reference.md``, ``reference.csv`` and ``reference.png``; returns the first."""
    page = folder / "reference.md"
    write_whole(page, lambda path: path.write_text(markdown(results), encoding="utf-8"))
    write_whole(
        folder / "reference.csv", lambda path: path.write_text(comma_separated(results), "utf-8")
    )
    beside_reference(folder / "reference.png", results["problems"])
    return page


def markdown(results: Mapping[str, Any]) -> str:
    """A table for each problem, with what the sampler says of itself above it."""
    budget, versions = results["budget"], results["versions"]
    lines = [
        "# Beside the posterior itself",
        "",
        f"{budget['particles']} particles, {budget['draws']} draws, {budget['steps']:,} steps, "
        f"seed {budget['seed']}; {versions['machine']}, torch {versions['torch']}, "
        f"{results['date']}, {results['seconds']:.0f} s in all. Variances are over NUTS's.",
    ]
    for found in results["problems"].values():
        lines += ["", f"## {found['title'].capitalize()}", "", about(found), "", *table(found)]
    return "\n".join([*lines, "", "![methods beside NUTS](reference.png)", ""])


def about(found: Mapping[str, Any]) -> str:
    """What was sampled and whether the chains agree, in words."""
    sampler = found["sampler"]
    figures = sampler["diagnostics"]
    r_hat = max(one["r_hat_max"] for one in figures.values())
    said = (
        f"{found['dimensions']} dimensions, {found['train']} training and {found['test']} test "
        f"examples; {sampler['draws']:,} draws of NUTS, largest R-hat {r_hat:.3f}, least effective "
        f"sample size of a prediction {figures['predictions']['ess_min']:.0f}, "
        f"{sampler['divergences']} divergences."
    )
    if not found["converged"]:
        said += (
            f" **The chains have not met** (R-hat of predictions above {CONVERGED}): take more "
            "draws before you read this table."
        )
    return said


def table(found: Mapping[str, Any]) -> list[str]:
    """Rows of one problem in Markdown; below it why methods are missing."""
    heads = [head for head, _ in COLUMNS.values()]
    lines = ["|  | " + " | ".join(heads) + " |", "|:--|" + "--:|" * len(heads)]
    missing = []
    for row in found["rows"].values():
        if "why_not" in row:
            missing.append(f"- {row['title']}: {row['why_not']}")
            continue
        lines.append(f"| {row['title']} | " + " | ".join(cells(row)) + " |")
    return lines + (["", "Not defined here:", "", *missing] if missing else [])


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row's figures as they are written, a dash where there is none."""
    values = [(row.get(name), form) for name, (_, form) in COLUMNS.items()]
    return [
        "-" if value is None or value != value else form.format(value) for value, form in values
    ]


def comma_separated(results: Mapping[str, Any]) -> str:
    """One line for each problem and method, all digits."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["problem", "method", *COLUMNS, "why_not"])
    for name, found in results["problems"].items():
        for method, row in found["rows"].items():
            figures = ["" if row.get(c) is None or row[c] != row[c] else row[c] for c in COLUMNS]
            writer.writerow([name, method, *figures, row.get("why_not", "")])
    return text.getvalue()
