"""The report as one HTML page that opens anywhere and asks for nothing from the network.

What a page says stands here, what it looks like in ``page/``: a template, a style sheet, and a
script that hands the charts to plotly, whose own JavaScript the page holds once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from bella import __version__, metrics
from bella.errors import require
from bella.files import write_whole
from bella.report import drawn
from bella.report.advice import DELTA, Advice, Held, advice
from bella.report.charts import (
    Chart,
    Numbers,
    Said,
    cost_chart,
    dispute_chart,
    reliability_chart,
    risk_chart,
    training_chart,
)
from bella.report.claims import PAIRS, Claim, claims, difference
from bella.report.galleries import galleries
from bella.report.material import Material
from bella.report.tables import TEST, Column, is_single, rows, sections
from bella.report.verdict import verdict

LINES = len(drawn.COLOURS)
"""Systems that one chart has colours for."""

LOOKED = 0.2
"""The share of the examples that a person looks at in the advice, one of `BUDGETS`."""


@dataclass(frozen=True)
class Tile:
    """A figure that stands out: what, how much, and how sure."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Cell:
    """One claim in the paired table: its number, and its verdict as a sign, in words, and as a kind
    for the style."""

    sign: str
    word: str
    kind: str
    number: str
    interval: str
    more: str


def write_report(materials: Sequence[Material], path: str | Path) -> int:
    """Write a report.

    Args:
        materials: a chapter each.
        path: of the HTML file.

    Returns:
        The size of the file in bytes: 2 MB of plotly's JavaScript, and the charts and pictures.

    Raises:
        MissingExtraError: jinja2 or plotly are not installed.
        BellaError: the file cannot be written.
    """
    # A name of a file need not be text; its odd bytes are written out.
    content = page(materials).encode("utf-8", "backslashreplace")
    write_whole(Path(path), lambda unfinished: unfinished.write_bytes(content))
    return len(content)


def page(materials: Sequence[Material]) -> str:
    """The text of the page; see `write_report`."""
    jinja2 = require("jinja2", drawn.EXTRA)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bella.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chapters = [chapter(material, f"c{number}") for number, material in enumerate(materials, 1)]
    charts = {one["id"]: drawn.drawn(one["chart"]) for c in chapters for one in c["charts"]}
    folder = files("bella.report") / "page"
    return environment.get_template("page.html").render(
        title=materials[0].title if len(materials) == 1 else f"{len(materials)} runs",
        version=__version__,
        chapters=chapters,
        # In a script's text only this sign could end the script.
        charts=json.dumps(charts, separators=(",", ":")).replace("<", "\\u003c"),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        plotly=drawn.script(),
    )


def chapter(material: Material, name: str) -> dict[str, Any]:
    """All that the template shows of one chapter."""
    results = material.results
    compared = len(results["methods"]) > 1
    told = advice(material)
    return {
        "id": name,
        "title": material.title,
        "lead": lead(material),
        "told": material.told,
        "facts": material.facts,
        "notes": material.notes,
        "tiles": tiles(material),
        "advised": advised(material, told),
        "choices": [] if told is None else [t for t in (budgets(told), thresholds(told)) if t],
        "caveats": [] if told is None else caveats(material, told),
        "broken": None if told is None else broken(material, told),
        "command": material.command,
        "examples": results["words"]["examples"],
        "tables": [
            Numbers(headings, lines, title)
            for title, columns in sections(results).items()
            for headings, lines in [rows(results, columns)]
            if len(headings) > 1
        ],
        "seeds": results["seeds"],
        "verdict": verdict(results) if compared else [],
        "paired": paired(claims(results)) if compared else None,
        "charts": [{"id": f"{name}-{chart.name}", "chart": chart} for chart in charts(material)],
        "galleries": galleries(material),
    }


def lead(material: Material) -> str:
    """Of whom the page tells, and of which seeds."""
    seeds, several = material.results["seeds"], len(material.results["methods"]) > 1
    told = (
        f"Uncertainties, thresholds and pictures are those of {material.told}." if several else ""
    )
    if seeds > 1:
        told += f" Tables are means over {seeds} seeds; curves and thresholds are of seed 0."
    return told.strip()


def charts(material: Material) -> list[Chart]:
    """The charts of a chapter, in the order of the page."""
    shown = in_charts(material)
    found = [
        reliability_chart(shown),
        risk_chart(shown),
        dispute_chart(material.groups, material.told),
        *material.charts,
        cost_chart(material.results, shown),
        training_chart(material.history),
    ]
    return [chart for chart in found if chart is not None]


def in_charts(material: Material) -> dict[str, Said]:
    """The system that is told of, those that it is compared with, and then the others."""
    said, methods = material.on("test"), material.results["methods"]
    titles = {name: method["title"] for name, method in methods.items()}
    compared = [
        titles[other]
        for ours, other in PAIRS
        if titles.get(ours) == material.told and other in titles
    ]
    order = dict.fromkeys([material.told, *compared, *said])
    return {title: said[title] for title in list(order)[:LINES] if title in said}


# ---------------------------------------------------------------- what stands out


def tiles(material: Material) -> list[Tile]:
    """What a reader wants to know first of the system that is told of."""
    said = material.of_told("test")
    method = next(m for m in material.results["methods"].values() if m["title"] == material.told)
    assert said is not None
    predictive, labels = said
    wrong = predictive.predictions != labels
    score = predictive.entropy
    found = [
        _tile(
            material, method, "accuracy", "right answers", _share(int((~wrong).sum()), len(wrong))
        ),
        _tile(material, method, "ece", "calibration error (ECE)", None),
        _tile(
            material,
            method,
            "auroc_errors_entropy",
            "notices its mistakes (AUROC of H)",
            metrics.auroc_interval(score, wrong),
        ),
    ]
    for name in material.results["shifts"]:
        part = material.of_told(name)
        figure = "auroc_entropy" if is_single(method) else "auroc_mi"
        column = Column(name, figure, "", "{:.2f}")
        if part is not None:
            found.append(
                _tile(
                    material,
                    method,
                    column,
                    f"notices {material.called(name)} (AUROC of "
                    f"{'H' if is_single(method) else 'MI'})",
                    _noticed(said, part, figure),
                )
            )
    return [tile for tile in found if tile is not None]


def _tile(
    material: Material,
    method: Mapping[str, Any],
    figure: str | Column,
    name: str,
    interval: tuple[float, float] | None,
) -> Tile | None:
    form = "{:.1%}" if figure == "accuracy" else "{:.2f}"
    form = "{:.3f}" if figure == "ece" else form
    column = figure if isinstance(figure, Column) else Column(TEST, figure, "", form)
    found = column.of(method)
    if found is None or found["mean"] is None or math.isnan(found["mean"]):
        return None
    note = ""
    if found["spread"] is not None:
        note = f"± {form.format(found['spread'])} over {material.results['seeds']} seeds"
    elif interval is not None and not math.isnan(interval[0]):
        low, high = (form.format(end) for end in interval)
        note = f"{low} to {high} on other {material.results['words']['examples']} (95%)"
    return Tile(name, form.format(found["mean"]), note)


def _share(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    found = require("scipy.stats", "fit").binomtest(count, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _noticed(inside: Said, outside: Said, figure: str) -> tuple[float, float]:
    import torch

    scores = [
        (said[0].entropy if figure == "auroc_entropy" else said[0].mutual_information).cpu()
        for said in (inside, outside)
    ]
    flags = torch.cat([torch.zeros(len(scores[0])), torch.ones(len(scores[1]))]).bool()
    return metrics.auroc_interval(torch.cat(scores), flags)


# ---------------------------------------------------------------- what to do


def advised(material: Material, told: Advice | None) -> str:
    """The advice in a sentence or two."""
    words = material.results["words"]["examples"]
    if told is None:
        return (
            "Without validation data nothing can be promised: a threshold must come from labelled "
            f"{words} that were neither trained nor tested on."
        )
    one = next(budget for budget in told.budgets if budget.share == LOOKED)
    held = one.held[0]
    said = (
        f"If a person can look at {one.share:.0%} of the {words}: those with an entropy of "
        f"{one.threshold:.3g} nats or more. Of the answers to the other test {words} {held.wrong} "
        f"of {held.answered} were wrong"
        + (f" (at most {held.bound:.1%} of new ones, 90% sure)." if held.bound else ".")
    )
    best = told.best
    if best is None:
        return said
    sure = f"at most {best.risk:.0%} are wrong, promised with a probability of {1 - DELTA:.0%}."
    if math.isinf(best.threshold):
        return f"{said} Of all answers {sure}"
    return f"{said} Of those below {best.threshold:.3g} nats, {best.coverage:.0%} of all, {sure}"


def budgets(told: Advice) -> Numbers:
    """A line for each share that a person can look at."""
    headings = ["a person looks at", "entropy from (nats)"]
    for held in told.budgets[0].held:
        headings += [f"referred on {held.part}", f"wrong of the rest on {held.part}"]
        headings += ["at most"] if held.part == "test" else []
    lines = []
    for one in told.budgets:
        line = [f"{one.share:.0%}", f"{one.threshold:.3g}"]
        for held in one.held:
            line += [f"{held.referred:.0%}", _wrong(held)]
            if held.part == "test":
                line.append("-" if held.bound is None else f"{held.bound:.1%}")
        lines.append(line)
    return Numbers(
        headings,
        lines,
        "By how much a person can look at. Thresholds are from validation, without its labels; at "
        "most so many are wrong of new examples like the test part, 90% sure.",
    )


def _wrong(held: Held) -> str:
    share = "" if held.risk is None else f", {held.risk:.1%}"
    return f"{held.wrong} of {held.answered}{share}{' (broken)' if held.broken else ''}"


def thresholds(told: Advice) -> Numbers | None:
    """A line for each promise: its threshold, and what came of it on each labelled part."""
    if not told.rows:
        return None
    headings = ["wrong at most", "entropy from (nats)", "referred on validation"]
    for held in told.rows[0][1]:
        headings += [f"referred on {held.part}", f"wrong of the rest on {held.part}"]
    lines = []
    for made, found in told.rows:
        place = "none: answer all" if math.isinf(made.threshold) else f"{made.threshold:.3g}"
        line = [f"{made.risk:.0%}", place, f"{1 - made.coverage:.0%}"]
        for held in found:
            line += [f"{held.referred:.0%}", _wrong(held)]
        lines.append(line)
    return Numbers(
        headings,
        lines,
        "By how much may be wrong. Refer what is as uncertain as the threshold or more; of the "
        "rest at most so many are wrong, promised from the validation part.",
    )


def caveats(material: Material, told: Advice) -> list[str]:
    """What is not promised, and where the thresholds are from."""
    words = material.results["words"]["examples"]
    why = []
    if told.refused:
        why.append(f"{_risks(told.refused)}: too many mistakes are among the surest answers")
    if told.lacking:
        takes = ", ".join(f"{count:,}" for count in told.lacking.values())
        why.append(f"{_risks(told.lacking)}: that takes {takes} {words} without one mistake")
    found = []
    if why:
        found.append(
            f"What {told.examples:,} validation {words} cannot promise of wrong answers: at most "
            f"{'; at most '.join(why)}."
        )
    return [
        *found,
        f"Thresholds are from {told.examples:,} validation {words} (promises by Clopper and "
        f"Pearson's bound over ten thresholds, δ = {DELTA}). Where the same {words} chose an epoch "
        "or a temperature too, a promise is a little bold; the test part chose nothing.",
    ]


def _risks(risks: Iterable[float]) -> str:
    return ", ".join(f"{risk:.0%}" for risk in risks)


def broken(material: Material, told: Advice) -> str | None:
    """A sentence where a promise is seen to be broken."""
    if not told.breaks:
        return None
    return (
        f"On {' and '.join(told.breaks)} a promise is seen to be broken: kept, it would show so "
        "many mistakes in fewer than 1 of 20 samples. After a shift nothing is promised: use a "
        f"threshold on {material.results['words']['examples']} drawn as the validation part was."
    )


# ---------------------------------------------------------------- the paired table


SIGNS = {
    "better": "▲",
    "worse": "▼",
    "better, alone": "△",
    "worse, alone": "▽",
    "not told apart": "·",
}


def paired(found: Sequence[Claim]) -> dict[str, Any] | None:
    """Every claim: a row for each pair of methods, a column for each question."""
    if not found:
        return None
    headings = list(dict.fromkeys(claim.figure for claim in found))
    lines = []
    for (ours, other), group in groupby(found, key=lambda claim: (claim.ours, claim.other)):
        cells = {claim.figure: _cell(claim) for claim in group}
        lines.append({"ours": ours, "other": other, "cells": [cells.get(h) for h in headings]})
    return {"headings": headings, "rows": lines}


def _cell(claim: Claim) -> Cell:
    word = "better" if claim.good else "worse"
    word = word if claim.stands else f"{word}, alone" if claim.alone else "not told apart"
    number, _, interval = difference(claim.test).partition(" [")
    return Cell(
        SIGNS[word],
        word,
        word.replace(", ", "-").replace(" ", "-"),
        number,
        f"[{interval}" if interval else "",
        f"{claim.means[1]:.3f} to {claim.means[0]:.3f}, better on {claim.seeds} seeds, "
        f"p {claim.test.p:.2g}, by Holm {claim.p:.2g}",
    )
