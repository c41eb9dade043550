"""The demo: a pre-trained network becomes Bayesian on real images, and the report says what for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bella.evaluation.early_stop import early_stop_rows
from bella.experiments.bench import read_outputs
from bella.experiments.compare import compare
from bella.experiments.methods import DEMO, METHODS
from bella.experiments.tasks import task_named
from bella.experiments.tasks.task import Task
from bella.files import read_json, write_whole
from bella.prediction.predictive import Predictive
from bella.report import pictures
from bella.report.tables import early_stop_markdown, markdown_table, verdict

TOLD = "bella"
"""The method whose uncertainties the pictures show."""


def demo(
    data: str = "elpv",
    *,
    folder: str | Path,
    seeds: int = 3,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Compare the demo's methods on a task; write ``results.json``, ``report.md`` and pictures.

    Args:
        data: ``elpv`` or ``fashion-mnist``.
        folder: for everything that is written.
        seeds: how many training seeds.
        progress: show bars.
        **settings: of `bella.fit`.

    Returns:
        The results, see `compare`.

    Raises:
        BellaError: unknown data.
        MissingExtraError: data or network are not installed.
    """
    folder = Path(folder)
    task = task_named(data)
    results = compare(task, DEMO, seeds=seeds, folder=folder, progress=progress, **settings)
    page = report(results, draw(task, folder), early_stop(task, folder))
    write_whole(folder / "report.md", lambda path: path.write_text(page))
    return results


def draw(task: Task, folder: Path) -> dict[str, Path]:
    """All pictures, from the predictions of seed 0."""
    told = read_outputs(folder / "runs" / f"{TOLD}-0")
    predictive = {part: Predictive(logits) for part, (logits, _) in told.items()}
    shown = {}
    test: Any = task.part("test", 0)
    labels = [task.classes[label] for label in test.labels]
    shown["The most and the least certain test images"] = pictures.extremes(
        folder / "extremes.png", test, predictive["test"], labels, task.classes
    )
    if "doubt" in task.pools:
        doubt: Any = task.part("doubt", 0)
        labels = [f"defect {p:.2f}" for p in doubt.probability]
        shown["The same among the cells that experts doubted"] = pictures.extremes(
            folder / "doubt.png", doubt, predictive["doubt"], labels, task.classes
        )
    shown["Uncertainty by group"] = pictures.densities(
        folder / "densities.png", groups(task, predictive), f"{METHODS[TOLD].title}: {task.title}"
    )
    compared = ("lora", "lora+temperature", "lora-ensemble", "bella", "bella-svgd")
    colours = pictures.colours_of(METHODS[name].title for name in compared)
    outputs = {name: read_outputs(folder / "runs" / f"{name}-0") for name in compared}
    shown["Reliability on the test set"] = pictures.reliability(
        folder / "reliability.png",
        {METHODS[name].title: Predictive(found["test"][0]) for name, found in outputs.items()},
        told["test"][1],
        colours,
    )
    moved = ("lora-ensemble", "bella", "bella-svgd")
    shown["Distance of two particles"] = pictures.distances(
        folder / "distances.png",
        {
            METHODS[name].title: read_json(
                folder / "runs" / f"{name}-0" / "posterior" / "run.json"
            )["trace"]
            for name in moved
        },
        colours,
    )
    return shown


def early_stop(task: Task, folder: Path) -> str:
    """What it saves to leave out particles where the first two agree, from seed 0."""
    told = read_outputs(folder / "runs" / f"{TOLD}-0")
    parts = {part: (Predictive(logits), labels) for part, (logits, labels) in told.items()}
    shifted = {name: parts[part] for name, part in task.shifts.items()}
    return early_stop_markdown(early_stop_rows(*parts["test"], ood=shifted))


def groups(task: Task, predictive: dict[str, Predictive]) -> dict[str, Predictive]:
    """Test examples by right and wrong answer (or expert label), and the shifted parts."""
    test: Any = task.part("test", 0)
    found = {}
    if hasattr(test, "probability"):
        for value in (0.0, 1.0):
            rows = [i for i, p in enumerate(test.probability) if p == value]
            found[f"mono, defect {value:.0f}"] = Predictive(predictive["test"].logits[:, rows])
        doubt: Any = task.part("doubt", 0)
        for low, name in ((True, "1/3"), (False, "2/3")):
            rows = [i for i, p in enumerate(doubt.probability) if (p < 0.5) == low]
            found[f"mono, defect {name}"] = Predictive(predictive["doubt"].logits[:, rows])
        found["poly"] = predictive["poly"]
        return found
    return {part: predictive[part] for part in predictive if part != "validation"}


def took(results: dict[str, Any]) -> str:
    """The wall time in words; nothing where parts were there already."""
    return "" if results["seconds"] is None else f", {results['seconds']:.0f} s in all"


def report(results: dict[str, Any], drawn: dict[str, Path], stopped: str) -> str:
    """The page: table, words, pictures, and what stopping early saves."""
    parts, settings, low_rank = (
        ", ".join(f"{name} {value}" for name, value in results[kind].items())
        for kind in ("parts", "settings", "low_rank")
    )
    lines = [
        f"# {results['title']}",
        "",
        f"{results['seeds']} seeds{took(results)}, on "
        f"{results['versions']['machine']}. Images: {parts}. Training: {settings}. Low-rank "
        f"changes: {low_rank}.",
        "",
        markdown_table(results),
        "",
        "`±` is the standard deviation over seeds. All heads start from probes. "
        "H: entropy, MI: mutual information, as a score for errors, doubt and shift (AUROC; "
        "0.5 is chance). NLL in nats, Brier from 0 to 2.",
        "",
        "## What the particles bought, and what they did not",
        "",
        *(f"- {said}" for said in verdict(results)),
        "",
    ]
    for title, path in drawn.items():
        lines += [f"## {title}", "", f"![{title}]({path.name})", ""]
    lines += [
        "## Stopping early",
        "",
        f"{METHODS[TOLD].title}, seed 0: the first two particles run on every image, the others "
        "only where the mutual information of the two is not below the bound (`bella.predict(..., "
        "stop=bound)`). First row: the figures of all particles; below: what changes.",
        "",
        stopped,
        "",
    ]
    return "\n".join(lines)
