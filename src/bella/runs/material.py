"""What a report is made of, from a user's run: it predicts, and keeps what was said."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from bella.data import ImageList, LabelledImages, open_images, shifts_of
from bella.data.corruptions import SEVERITIES, SMALLEST, corrupted, corruptions_named
from bella.data.labelled import UNKNOWN, Labelled
from bella.data.opening import open_images_by_name
from bella.errors import BellaError
from bella.evaluation.attacks import BUDGETS, attacked
from bella.evaluation.cost import cost
from bella.evaluation.evaluate import collect, known_figures, shifted_figures
from bella.files import read_mapping
from bella.inputs import split, to
from bella.prediction.predict import predict
from bella.prediction.predictive import Predictive
from bella.report.charts import Chart, Said, shift_chart
from bella.report.material import Material
from bella.runs.config import RunConfig, read_config
from bella.runs.fitting import CONFIG, FIGURES
from bella.runs.opened import BATCH, TrainedRun, read_model
from bella.runs.opening import open_run
from bella.runs.texts.config import TextConfig
from bella.runs.texts.opened import TextRun, test_of
from bella.runs.texts.training import rows_of
from bella.runs.vqa.opened import VqaRun
from bella.training.identity import fingerprint_data
from bella.trees import map_tensors

OTHER = "ood"
"""The name of foreign images among the shifts."""

SAME = 0.01
"""Share by which an NLL may differ from that of the training: by another machine's rounding."""

STRESSED = 200
"""Test images that curves of corruptions and attacks are from, at most."""


@dataclass(frozen=True)
class Asked:
    """What a report on runs is asked for.

    Attributes:
        data: labelled examples in the place of the run's own test part.
        ood: images of another kind.
        corruptions: kinds of `bella.data.corruptions` to draw curves of.
        attack: a name of `bella.evaluation.attacks.ATTACKS` to draw a curve of.
        device: where to run.
        workers: processes that read images.
        own_code: see `bella.runs.opened.open_run`.
    """

    data: Path | None = None
    ood: Path | None = None
    corruptions: Sequence[str] = ()
    attack: str | None = None
    device: str | None = None
    workers: int = 0
    own_code: bool = False


@dataclass(frozen=True)
class _Answered:
    """A run with what it said."""

    folder: Path
    run: TrainedRun | TextRun
    record: Mapping[str, Any]
    config: Any
    said: Mapping[str, Said]
    inputs: Mapping[str, Labelled]
    method: Mapping[str, Any]
    curves: Mapping[str, Mapping[float, float]]
    notes: Sequence[str]

    @property
    def same(self) -> Any:
        """What runs have in common whose figures may stand in one table: the test images."""
        return self.run.classes, str(fingerprint_data(self.inputs["test"]))


def run_materials(
    folders: Sequence[str | Path], asked: Asked, bar: Progress | None = None
) -> list[Material]:
    """Chapters of a report: one for all runs that answer the same test images.

    Args:
        folders: of the runs.
        asked: what to report on.
        bar: a display to show bars in.

    Raises:
        BellaError: no run folder; its images are not there any more; no such corruption or attack.
    """
    together: dict[Any, list[_Answered]] = {}
    for folder in folders:
        found = _answered(Path(folder), asked, bar)
        together.setdefault(found.same, []).append(found)
    return [_material(group, asked) for group in together.values()]


# ---------------------------------------------------------------- asking the particles


def _answered(folder: Path, asked: Asked, bar: Progress | None) -> _Answered:
    kinds = corruptions_named(asked.corruptions)
    run = open_run(folder, device=asked.device, workers=asked.workers, own_code=asked.own_code)
    if isinstance(run, VqaRun):
        raise BellaError(
            f"bella report is of runs that choose among classes, and {folder} writes answers: they "
            "stand in its answers.jsonl, their figures in figures.json."
        )
    config = None
    if (folder / CONFIG).exists():
        config = read_config(folder / CONFIG, {}, {"": TextConfig})
    inputs = _inputs(folder, run, config, asked)
    said = {name: _said(run, part, bar) for name, part in inputs.items()}
    record = read_mapping(folder / "run.json") if (folder / "run.json").exists() else {}
    figures = known_figures(*said["test"])
    shifts = {n: shifted_figures(*said["test"], *said[n]) for n in said if n not in PARTS}
    count = cost(run.posterior)
    costs = {
        "trainable": count["trainable"],
        "bytes_on_disk": count["bytes_on_disk"],
        "seconds_training": record.get("seconds"),
        "ms_predicting": _milliseconds(run, inputs["test"]),
    }
    method = {
        "title": folder.name or str(folder),
        "figures": _alone(figures),
        "parts": {name: _alone(values) for name, values in shifts.items()},
        "costs": _alone(costs),
    }
    curves = {}
    few = inputs["test"].select(range(0, len(inputs["test"]), -(-len(inputs["test"]) // STRESSED)))
    for kind in kinds:
        curves[kind] = _corrupted_curve(run, few, kind, bar)
    if asked.attack is not None:
        curves[f"attack {asked.attack}"] = _attacked_curve(run, few, asked.attack, bar)
    notes = _notes(folder, asked, figures, len(inputs["test"]))
    return _Answered(folder, run, record, config, said, inputs, method, curves, notes)


def _notes(folder: Path, asked: Asked, figures: Mapping[str, float], count: int) -> list[str]:
    """What a reader should know of the test images."""
    if asked.data is not None:
        return [f"The test images are those of {asked.data}, and not {folder}'s own test part."]
    if not (folder / FIGURES).exists():
        return [f"The training of {folder} is not finished: these are the particles so far."]
    then = read_mapping(folder / FIGURES)
    same = all(isinstance(then.get(name), float) for name in ("accuracy", "nll"))
    same = same and abs(then["accuracy"] - figures["accuracy"]) < 1 / count
    if same and abs(then["nll"] - figures["nll"]) <= SAME * abs(then["nll"]):
        return []
    return [
        f"{folder} was evaluated on other test images: its data have changed since, so that some "
        "of these may have been trained on. Give --data with images that were not."
    ]


PARTS = ("validation", "test")
"""What is drawn as the training images were."""


def _inputs(folder: Path, run: TrainedRun | TextRun, config: Any, asked: Asked) -> dict[str, Any]:
    """The run's own validation and test examples and its shifts, or others that are named.

    Raises:
        BellaError: they are not there any more, or something is asked that texts do not have.
    """
    what = "IMAGES"
    if isinstance(run, TextRun):
        what = "ROWS"
        if asked.corruptions or asked.attack:
            raise BellaError(f"{folder} is a run on texts: corruptions and attacks are for images.")
        if not run.task.classes:
            raise BellaError(
                f"{folder} is a run of the task {run.task.name}, and a report is on classes: "
                f"`bella evaluate {folder} --data {what}` says its figures."
            )
    found: dict[str, Any] = {}
    if asked.data is None and config is None:
        raise BellaError(f"{folder} does not say what it was trained on: give --data {what}.")
    if config is not None:
        try:
            found = _own(run, config)
        except (BellaError, OSError) as error:
            if asked.data is None:
                raise BellaError(
                    f"The {what.lower()} that {folder} was trained on cannot be read ({error}): "
                    f"give --data {what} to report on others."
                ) from None
    return found | _named(run, asked)


def _own(run: TrainedRun | TextRun, config: Any) -> dict[str, Any]:
    """The examples that the run's own configuration names."""
    if isinstance(run, TextRun):
        rows, _, facts = rows_of(run.task, config)
        if facts != run.asked.facts:
            raise BellaError("their classes are others by now")
        known = {name: run.tokenised(rows[name], labelled=True) for name in PARTS}
        return known | {name: run.other(rows[name]) for name in shifts_of(rows)}
    own = open_images_by_name(preprocess=run.preprocess, **config.data_arguments())
    if own["train"].classes != run.classes:
        raise BellaError(f"their classes are {', '.join(own['train'].classes)} by now")
    return {name: own[name] for name in (*PARTS, *shifts_of(own))}


def _named(run: TrainedRun | TextRun, asked: Asked) -> dict[str, Any]:
    """The examples that a report is asked for."""
    found: dict[str, Any] = {}
    if isinstance(run, TextRun):
        if asked.data is not None:
            found["test"] = run.tokenised(test_of(run.read(asked.data)), labelled=True)
        if asked.ood is not None:
            found[OTHER] = run.other(test_of(run.read(asked.ood)))
        return found
    plain = run.preprocess
    if asked.data is not None:
        found["test"] = open_images(asked.data, plain, run.classes)
    if asked.ood is not None:
        listed = ImageList(asked.ood, plain, "stop")
        found[OTHER] = LabelledImages(listed.paths, [UNKNOWN] * len(listed), run.classes, plain)
    return found


def _said(run: TrainedRun | TextRun, images: Any, bar: Progress | None) -> Said:
    with run.drawing():
        return _classes(collect(run.predicts, run.loader(images), progress=bar, draws=run.draws))


def _classes(said: Any) -> Said:
    if not isinstance(said[0], Predictive):
        raise BellaError("A report is on classes, and this run's network says something else.")
    return said


def _milliseconds(run: TrainedRun | TextRun, examples: Any) -> float:
    """Time to predict one example, from its tensors on: the best of three."""
    args, kwargs, labels = split(next(iter(run.loader(examples))))
    few = to(kwargs or args, next(run.posterior.parameters()).device)
    best = float("inf")
    for _ in range(3):
        fresh = map_tensors(torch.clone, few)  # none may be remembered
        begun = time.perf_counter()
        predict(run.predicts, fresh, draws=run.draws).cpu()
        best = min(best, time.perf_counter() - begun)
    return 1000 * best / len(labels)


def _corrupted_curve(run: Any, images: Any, kind: str, bar: Progress | None) -> dict[float, float]:
    found = {0.0: _accuracy(_said(run, images, bar))}
    small = min(run.preprocess.height, run.preprocess.width) < SMALLEST
    for severity in SEVERITIES:
        part = corrupted(images, kind, severity, side=SMALLEST if small else None)
        found[float(severity)] = _accuracy(_said(run, part, bar))
    return found


def _attacked_curve(run: Any, images: Any, attack: str, bar: Progress | None) -> dict[float, float]:
    found = {0.0: _accuracy(_said(run, images, bar))}
    for budget in BUDGETS:
        with run.drawing():
            said = attacked(
                run.predicts,
                images,
                budget,
                attack=attack,
                preprocess=run.preprocess,
                batch_size=BATCH,
                draws=run.draws,
            )
        found[budget] = _accuracy(said)
    return found


def _accuracy(said: Said) -> float:
    predictive, labels = said
    return float((predictive.predictions == labels).double().mean())


# ---------------------------------------------------------------- a chapter


def _material(group: Sequence[_Answered], asked: Asked) -> Material:
    first = group[0]
    shifts = [name for name in first.said if name not in PARTS]
    titles = _titles(group)
    unscored = [n for n in shifts if bool((first.said[n][1] < 0).any())]
    several = len(group) > 1
    what = "ROWS" if isinstance(first.run, TextRun) else "IMAGES"
    results = {
        "title": first.run.network,
        "seeds": 1,
        "splits": "all seeds",
        "parts": {name: len(part) for name, part in first.inputs.items()},
        "shifts": shifts,
        "words": {"examples": first.inputs["test"].examples, "noticing": {}, "unscored": unscored},
        "methods": {
            title: {**one.method, "title": title} for title, one in zip(titles, group, strict=True)
        },
    }
    chance = [
        f"{len(group)} runs of one training each, on the same test examples: what parts them may "
        "be chance. `bella compare` trains several seeds and tests the differences."
    ]
    charts = _curve_charts(dict(zip(titles, group, strict=True)))
    title = " and ".join(titles) if len(group) < 3 else f"{len(group)} runs"
    return Material(
        title=f"{title}: {first.run.network}",
        facts=_facts(group, titles),
        results=results,
        predictions={t: one.said for t, one in zip(titles, group, strict=True)},
        told=titles[0],
        classes=first.run.classes,
        inputs={name: part for name, part in first.inputs.items() if name != "validation"},
        parts={} if asked.ood is None else {OTHER: asked.ood.name},
        command=f"bella predict {shlex.quote(str(first.folder))} {what} --out predictions.csv",
        charts=charts,
        history=() if several else first.record.get("history", ()),
        notes=[
            *dict.fromkeys(note for one in group for note in one.notes),
            *(chance if several else ()),
        ],
    )


def _titles(group: Sequence[_Answered]) -> list[str]:
    """Names of the folders; whole paths where two have one name."""
    names = [one.method["title"] for one in group]
    return names if len(set(names)) == len(names) else [str(one.folder) for one in group]


def _curve_charts(runs: Mapping[str, _Answered]) -> list[Chart]:
    found = []
    first = next(iter(runs.values()))
    kinds = [kind for kind in first.curves if not kind.startswith("attack ")]
    several = len(runs) > 1
    count = min(STRESSED, len(first.inputs["test"]))
    for kinds_shown in [[kind] for kind in kinds] if several else [kinds] if kinds else []:
        curves = (
            {title: one.curves[kinds_shown[0]] for title, one in runs.items()}
            if several
            else {kind.replace("_", " "): first.curves[kind] for kind in kinds_shown}
        )
        what = kinds_shown[0].replace("_", " ") if several else "corruptions"
        found.append(
            shift_chart(
                f"shift-{kinds_shown[0]}" if several else "shift",
                f"How does it stand {what}?",
                "severity (0: as they are)",
                curves,
                f"Of at most {count} test images; severities are ImageNet-C's.",
            )
        )
    for kind in first.curves:
        if kind.startswith("attack "):
            found.append(
                shift_chart(
                    "attack",
                    f"How does it stand {kind.removeprefix('attack ').upper()}?",
                    "budget (largest change of a pixel in 0..1)",
                    {title: one.curves[kind] for title, one in runs.items()},
                    f"Of at most {count} test images, on the gradient of what all particles say "
                    "together.",
                )
            )
    return found


def _facts(group: Sequence[_Answered], titles: Sequence[str]) -> dict[str, str]:
    first = group[0]
    parts = ", ".join(f"{name} {len(part)}" for name, part in first.inputs.items())
    found = {
        "network": ", ".join(dict.fromkeys(one.run.network for one in group)),
        "classes": _few(first.run.classes),
        first.inputs["test"].examples: parts,
    }
    for title, one in zip(titles, group, strict=True):
        if one.config is not None:
            found["method" if len(group) == 1 else title] = _method(one.config, one)
    if first.config is not None:
        found["data"] = first.config.data
    if isinstance(first.run, TrainedRun) and (bad := read_model(first.folder).skipped_images):
        found["images that cannot be read"] = f"{bad}, skipped"
    if isinstance(versions := first.record.get("versions"), dict):
        found["machine"] = versions.get("machine", "")
        found["versions"] = ", ".join(f"{n} {v}" for n, v in versions.items() if n != "machine")
    return found


def _method(config: RunConfig, one: _Answered) -> str:
    said = [config.method, f"{one.run.posterior.particles} particles", f"{config.transport}"]
    said += [f"{config.epochs} epochs", f"seed {config.seed}"]
    if best := one.record.get("best_epoch"):
        said.append(f"best epoch {best}")
    if seconds := one.record.get("seconds"):
        said.append(f"{seconds:,.0f} s of training")
    return ", ".join(said)


def _few(names: Sequence[str], shown: int = 12) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _alone(figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of one training, in the form of several seeds."""
    return {
        name: {"mean": None if value != value else value, "spread": None, "values": [value]}
        for name, value in figures.items()
        if value is not None
    }
