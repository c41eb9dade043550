"""What `bella evaluate` found beyond its figures: in words, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bella.files import write_json
from bella.report import pictures
from bella.report.decisions import say_decisions

Found = Mapping[str, Any]

SHOWN = (("accuracy", "{:.3f} right"), ("nll", "NLL {:.3f}"), ("auroc_entropy", "noticed {:.2f}"))
"""Figures of a shifted set that its line shows; ``noticed`` is the AUROC of the entropy."""


def say_evaluation(found: Found) -> list[str]:
    """Corruptions by severity, attacks by budget, and what may be promised: a line each."""
    said = []
    for severity, rows in _by(found.get("corruptions", ()), "severity").items():
        kinds = rows[0]["kind"] if len(rows) == 1 else f"mean of {len(rows)} corruptions"
        said.append(f"Severity {severity}, {kinds}: {_line(rows)}.")
    for row in found.get("attacks", ()):
        said.append(f"{row['attack'].upper()} of {row['budget']:g}: {_line([row])}.")
    if "decisions" in found:
        said += say_decisions(found["decisions"])
    return said


def _by(rows: Sequence[Found], name: str) -> dict[Any, list[Found]]:
    groups: dict[Any, list[Found]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _line(rows: Sequence[Found]) -> str:
    means = {name: fmean(row[name] for row in rows) for name, _ in SHOWN if name in rows[0]}
    return ", ".join(form.format(means[name]) for name, form in SHOWN if name in means)


def write_evaluation(found: Found, folder: str | Path) -> dict[str, Path]:
    """Write ``evaluation.json`` and pictures of what there is; returns the pictures by title.

    Args:
        found: of `bella.runs.evaluating.evaluate_run`.
        folder: for the files; made where it is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", dict(found))
    clean = {name: found[name] for name in ("accuracy", "entropy") if name in found}
    drawn = {}
    if curve := found.get("risk_coverage"):
        drawn["Risk and coverage"] = pictures.risk_coverage(
            folder / "risk_coverage.png", {"answers by entropy": (curve["coverage"], curve["risk"])}
        )
    if rows := found.get("corruptions"):
        kinds = _by(rows, "kind").items()
        lines = {kind: {0: clean} | {row["severity"]: row for row in some} for kind, some in kinds}
        drawn["Under corruptions"] = pictures.under_shift(
            folder / "corruptions.png", lines, "severity"
        )
    if rows := found.get("attacks"):
        lines = {rows[0]["attack"]: {0: clean} | {row["budget"]: row for row in rows}}
        drawn["Under attack"] = pictures.under_shift(
            folder / "attacks.png", lines, "budget (pixels in 0..1)"
        )
    return drawn
