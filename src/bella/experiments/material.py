"""What a report is made of, from a comparison's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bella.data.labelled import Labelled
from bella.errors import BellaError, MissingExtraError
from bella.experiments.page import told_of, took
from bella.experiments.predictions import read_outputs
from bella.experiments.tasks import TASKS, images_task, task_named
from bella.experiments.tasks.task import Task
from bella.report.charts import Said
from bella.report.html import write_report
from bella.report.material import Material
from bella.report.tables import Results, read_results

REPORT = "report.html"


def write_html(task: Task, results: Results, folder: str | Path) -> Path:
    """Write ``report.html`` beside ``results.json``; returns its path."""
    path = Path(folder) / REPORT
    write_report([material(results, Path(folder), task)], path)
    return path


def comparison_material(folder: str | Path) -> Material:
    """A chapter of a report from a comparison's folder; with its examples where its data are there.

    Raises:
        BellaError: the folder holds no results, or no predictions.
    """
    folder = Path(folder)
    results = read_results(folder)
    try:
        task = reopened(results)
    except (BellaError, MissingExtraError, OSError) as error:
        return material(results, folder, None, [f"The examples are not shown: {error}"])
    return material(results, folder, task)


def reopened(results: Results) -> Task:
    """The task that a comparison was on.

    Raises:
        BellaError: its data are not there any more, or it does not say where they are.
    """
    source = results.get("source")
    if source:
        return images_task(**source)
    if results["task"] in TASKS:
        return task_named(results["task"])
    raise BellaError(f"the comparison does not say where the data of {results['task']!r} are.")


def material(
    results: Results, folder: Path, task: Task | None, notes: list[str] | None = None
) -> Material:
    """A chapter of a report.

    Args:
        results: of `bella.experiments.compare.compare`.
        folder: of the comparison.
        task: what was compared on; ``None`` where it is not at hand.
        notes: what a reader should know.
    """
    notes = list(notes or ())
    told, titles = told_of(results), {n: m["title"] for n, m in results["methods"].items()}
    names = {"validation": "validation", "test": "test"} | shifted(results, task)
    predictions: dict[str, dict[str, Said]] = {}
    for name, title in titles.items():
        outputs = read_outputs(folder / "runs" / f"{name}-0")
        predictions[title] = {
            shown: outputs[part] for shown, part in names.items() if part in outputs
        }
    inputs: dict[str, Labelled] = {}
    if task is not None:
        inputs = examples(task, names, predictions[titles[told]], notes)
    return Material(
        title=results["title"],
        facts=facts(results),
        results=results,
        predictions=predictions,
        told=titles[told],
        parts={name: names[name] for name in results["shifts"]},
        classes=() if task is None else task.classes,
        inputs=inputs,
        notes=notes,
    )


def shifted(results: Results, task: Task | None) -> dict[str, str]:
    """The part of the data behind each shift's name."""
    known = results.get("shifted", {}) if task is None else task.shifts
    return {name: known.get(name, name) for name in results["shifts"]}


def examples(
    task: Task, names: Mapping[str, str], said: Mapping[str, Said], notes: list[str]
) -> dict[str, Labelled]:
    """The examples of the test part and of each shift, where they are those that were predicted."""
    found = {}
    for shown, part in names.items():
        if shown == "validation" or shown not in said:
            continue
        if part not in task.split(0):  # images that were named beside the data
            notes.append(f"The examples of {shown} are not shown: they are not part of the data.")
            continue
        data: Any = task.part(part, 0)
        if not isinstance(data, Labelled):
            continue
        if data.labels == said[shown][1].tolist():
            found[shown] = data
        else:
            notes.append(
                f"The examples of {shown} are not shown: they are not those of the comparison any "
                "more."
            )
    return found


SPLITS = {
    "each seed": "anew for each seed",
    "training data": "training data drawn anew for each seed, one test part",
    "all seeds": "the same for all seeds",
}
"""In words, which data the seeds share."""


def facts(results: Results) -> dict[str, str]:
    """What was trained, by name."""
    parts, settings, low_rank = (
        ", ".join(
            f"{name.replace('_', ' ')} {_said(value)}" for name, value in results[kind].items()
        )
        for kind in ("parts", "settings", "low_rank")
    )
    split = SPLITS[results["splits"]]
    found = {
        "methods": ", ".join(method["title"] for method in results["methods"].values()),
        results["words"]["examples"]: f"{parts}; split {split}",
        "training": settings or "as the methods have it",
        "low-rank changes": low_rank,
        "seeds": f"{results['seeds']}",
        "machine": results["versions"]["machine"],
        "versions": ", ".join(
            f"{name} {value}" for name, value in results["versions"].items() if name != "machine"
        ),
        "date": f"{results['date']}{took(results)}",
    }
    return found


def _said(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
