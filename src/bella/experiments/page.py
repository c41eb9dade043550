"""The page of a comparison: table, words, pictures, and what stopping early saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bella.data.labelled import LabelledImages
from bella.data.sets.base import USUAL
from bella.evaluation.early_stop import early_stop_rows
from bella.experiments.methods import DEMO, METHODS, Outputs
from bella.experiments.methods.low_rank import LowRank
from bella.experiments.methods.pooled import Pooled
from bella.experiments.predictions import read_outputs
from bella.experiments.tasks.task import Task
from bella.files import read_json, write_whole
from bella.prediction.predictive import Predictive
from bella.report import pictures
from bella.report.claims import claims_markdown
from bella.report.tables import early_stop_markdown, is_single, markdown_table
from bella.report.verdict import verdict

Results = Mapping[str, Any]

TOLD = ("bella", "bella+temperature")
"""The methods whose uncertainties the pictures show, the first that was compared."""

LINES = len(pictures.COLOURS)
"""Methods that one picture has colours for."""


def write_page(task: Task, results: Results, folder: str | Path) -> Path:
    """Write ``report.md`` and its pictures beside ``results.json``; returns its path.

    Args:
        task: what was compared on.
        results: of `compare`.
        folder: of the comparison.
    """
    folder = Path(folder)
    told = told_of(results)
    text = page(task, results, draw(task, results, folder, told), folder, told)
    write_whole(folder / "report.md", lambda path: path.write_text(text))
    return folder / "report.md"


def told_of(results: Results) -> str:
    """The method whose uncertainties are shown: Bella, or the last one that can disagree."""
    methods = results["methods"]
    several = [name for name, method in methods.items() if not is_single(method)]
    several += [name for name in reversed(TOLD) if name in methods]
    return several[-1] if several else next(iter(methods))


def stopping_of(told: str) -> str:
    """The method whose particles may stop early: a mixture's own particles, or the one told of."""
    method = METHODS[told]
    return method.of if isinstance(method, Pooled) else told


def compared_in_pictures(results: Results) -> list[str]:
    """As many methods as a picture has colours for, those of the demo first."""
    names = [name for name in DEMO if name in results["methods"]]
    names += [name for name in results["methods"] if name not in names]
    return names[-LINES:] if len(names) <= LINES else names[:LINES]


def draw(task: Task, results: Results, folder: Path, told: str) -> dict[str, Path]:
    """All pictures, from the predictions of seed 0."""
    outputs = read_outputs(folder / "runs" / f"{told}-0")
    predictive = {part: said for part, (said, _) in outputs.items()}
    shown = _draw_images(task, folder, predictive)
    groups = task.words.groups
    shown["Uncertainty by group"] = pictures.densities(
        folder / "densities.png",
        by_answer(outputs) if groups is None else groups(task, predictive),
        f"{METHODS[told].title}: {task.title}",
        task.words.examples,
    )
    names = compared_in_pictures(results)
    looks = pictures.looks_of(METHODS[name].title for name in names)
    shown["Reliability on the test set"] = pictures.reliability(
        folder / "reliability.png",
        {
            METHODS[name].title: read_outputs(folder / "runs" / f"{name}-0")["test"][0]
            for name in names
        },
        outputs["test"][1],
        looks,
    )
    traces = {
        method.title: read_json(folder / "runs" / f"{name}-0" / "posterior" / "run.json")["trace"]
        for name in names
        if isinstance(method := METHODS[name], LowRank) and method.particles > 1
    }
    if traces:
        shown["Distance of two particles"] = pictures.distances(
            folder / "distances.png", traces, looks
        )
    return shown


def _draw_images(task: Task, folder: Path, predictive: Mapping[str, Predictive]) -> dict[str, Path]:
    """The most and the least certain images, where the data are images."""
    if not all(isinstance(pool, LabelledImages) for pool in task.pools.values()):
        return {}
    test = task.part("test", 0)
    labels = [task.classes[label] for label in test.labels]
    title = f"The most and the least certain test {task.words.examples}"
    shown = {
        title: pictures.extremes(
            folder / "extremes.png", test, predictive["test"], labels, task.classes
        )
    }
    for gallery in task.words.galleries:
        images = task.part(gallery.part, 0)
        shown[gallery.title] = pictures.extremes(
            folder / f"{gallery.part}.png",
            images,
            predictive[gallery.part],
            gallery.labels(images),
            task.classes,
        )
    return shown


def by_answer(outputs: Outputs) -> dict[str, Predictive]:
    """Test examples by whether the answer is right, and the shifted parts."""
    said, labels = outputs["test"]
    right = said.predictions == labels
    found = {"right": said.positions(right), "wrong": said.positions(~right)}
    found |= {part: said for part, (said, _) in outputs.items() if part not in USUAL}
    return {name: group for name, group in found.items() if len(group)}


def early_stop(results: Results, shifts: Mapping[str, str], folder: Path, told: str) -> str:
    """What it saves to leave out particles where the first two agree, from seed 0.

    Args:
        results: of `compare`.
        shifts: the task's.
        folder: of the comparison.
        told: the method.
    """
    parts = read_outputs(folder / "runs" / f"{told}-0")
    shifted = {name: parts[part] for name, part in shifts.items()}
    return early_stop_markdown(results, early_stop_rows(*parts["test"], ood=shifted))


def took(results: Results) -> str:
    """The wall time in words; nothing where parts were there already."""
    return "" if results["seconds"] is None else f", {results['seconds']:.0f} s in all"


def page(task: Task, results: Results, drawn: Mapping[str, Path], folder: Path, told: str) -> str:
    """The page's text."""
    parts, settings, low_rank = (
        ", ".join(f"{name} {value}" for name, value in results[kind].items())
        for kind in ("parts", "settings", "low_rank")
    )
    words = task.words
    scores = ", ".join(["errors", *results["shifts"]])
    lines = [
        f"# {results['title']}",
        "",
        f"{results['seeds']} seed{'s'[: results['seeds'] != 1]}{took(results)}, on "
        f"{results['versions']['machine']}. {words.examples.capitalize()}: {parts}."
        + (f" Training: {settings}." if settings else "")
        + (f" Low-rank changes: {low_rank}." if task.pretrained else ""),
        "",
        markdown_table(results),
        "",
        "`±` is the standard deviation over seeds."
        + (" Linear heads start from probes." if task.pretrained else "")
        + f" H: entropy, MI: mutual information, as a score for {scores} (AUROC; 0.5 is chance). "
        "NLL in nats, Brier from 0 to 2.",
        "",
    ]
    if said := verdict(results):
        lines += ["## What was bought, and what was not", "", *(f"- {one}" for one in said), ""]
    if table := claims_markdown(results):
        lines += ["Every claim, won or not:", "", table, ""]
    for title, path in drawn.items():
        lines += [f"## {title}", "", f"![{title}]({path.name})", ""]
    stopping = stopping_of(told)
    if len(read_outputs(folder / "runs" / f"{stopping}-0")["test"][0].logits) > 2:
        lines += [
            "## Stopping early",
            "",
            f"{METHODS[stopping].title}, seed 0: the first two particles run on all "
            f"{words.examples}, the others only where the mutual information of the two is not "
            "below the bound (`bella.predict(..., stop=bound)`). First row: the figures of all "
            "particles; below: what changes.",
            "",
            early_stop(results, task.shifts, folder, stopping),
            "",
        ]
    return "\n".join(lines)
