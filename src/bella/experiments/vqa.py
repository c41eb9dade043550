"""Ways to answer questions about pictures, side by side: the same data, projector and budget.

The rows are those of the paper's Tables 5 and 10 with what it could not run: particles that are
coupled while they train. `untrained` is the network with its projector and no particles.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bella.console import progress_bar
from bella.errors import BellaError, nearest
from bella.files import plain, read_json, write_json, write_whole
from bella.folders import held
from bella.host import device_named, versions
from bella.models.seeing import open_seeing
from bella.posteriors.point import Point
from bella.runs.vqa.config import VqaConfig, completed
from bella.runs.vqa.opened import ANSWERS, FIGURES, VqaRun, keep, load_projector
from bella.runs.vqa.questions import read_questions
from bella.runs.vqa.training import own_projector, pictured, train_vqa
from bella.training.settings import checked

TITLES = {
    "untrained": "no particles",
    "lora": "single LoRA",
    "lora-ensemble": "low-rank ensemble",
    "repulsive": "particles (repulsive)",
    "bella-svgd": "particles (SVGD)",
}
HOW: dict[str, dict[str, Any]] = {
    "lora": {"particles": 1, "transport": "ensemble"},
    "lora-ensemble": {"transport": "ensemble"},
    "repulsive": {"transport": "repulsive"},
    "bella-svgd": {"transport": "svgd"},
}
USUAL = ("untrained", "lora", "lora-ensemble", "repulsive")
DONE = "settings.json"
COLUMNS = {
    "accuracy": ("accuracy", "{:.3f}"),
    "exact_match": ("exact match", "{:.3f}"),
    "entropy_correct": ("entropy if right", "{:.3f}"),
    "entropy_wrong": ("entropy if wrong", "{:.3f}"),
    "mi_correct": ("MI if right", "{:.4f}"),
    "mi_wrong": ("MI if wrong", "{:.4f}"),
}
KINDS = {
    "": "All questions",
    "_yes_no": "Yes/no (paper: Table 5)",
    "_number": "Number (paper: Table 5)",
    "_other": "Other (paper: Table 10)",
}


def compare_vqa(
    settings: Mapping[str, Any],
    methods: Sequence[str] = USUAL,
    *,
    seeds: int = 3,
    folder: str | Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Train and ask every method with every seed; go on where it stopped.

    A seed trains one projector for all its methods. The runs stand in ``METHOD/seed-K``, each with
    its ``answers.jsonl``; ``results.json`` and ``results.md`` hold the figures over seeds.

    Args:
        settings: fields of `bella.runs.vqa.VqaConfig`, without ``seed``.
        methods: names of `TITLES`.
        seeds: 0 and so many after it.
        folder: where all is written.
        progress: show bars.

    Returns:
        What ``results.json`` holds.

    Raises:
        BellaError: an unknown method, a folder of another comparison or one that is being written,
            or see `train_vqa`.
    """
    for name in methods:
        if name not in TITLES:
            raise BellaError(
                f"{name!r} is no way to answer questions here: near are {nearest(name, TITLES)}."
            )
    if seeds < 1:
        raise BellaError(f"seeds={seeds}: give a whole number of at least 1.")
    with held(Path(folder)):
        return _compared(dict(settings), methods, seeds, Path(folder), progress)


def _compared(
    settings: dict[str, Any], methods: Sequence[str], seeds: int, folder: Path, progress: bool
) -> dict[str, Any]:
    """What `compare_vqa` returns, in a folder that is held."""
    results: dict[str, Any] = {}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for seed in range(seeds):
        asked = settings | {"task": "vqa", "seed": seed}
        base = completed(checked(VqaConfig, asked))
        projector = _projector(base, folder / "projectors", progress)
        for name in methods:
            place = folder / name / f"seed-{seed}"
            own = HOW.get(name, {}) | ({} if projector is None else {"projector": str(projector)})
            config = checked(VqaConfig, asked | own)
            rows[name].append(_figures(name, config, place, progress))
        # After every seed: a comparison that is stopped has told what it knows.
        results = _results(base, settings, rows)
        write_json(folder / "results.json", results)
        write_whole(folder / "results.md", partial(Path.write_text, data=page(results)))
    return results


def _results(
    base: VqaConfig, settings: Mapping[str, Any], rows: Mapping[str, Sequence[dict[str, float]]]
) -> dict[str, Any]:
    """What ``results.json`` holds of the seeds that are done."""
    return plain(
        {
            "title": f"{base.data}, {base.network}",
            "settings": dict(settings),
            "seeds": base.seed + 1,
            "versions": versions(base.device),
            "device": str(device_named(base.device)),
            "date": date.today().isoformat(),
            "methods": {
                name: {"title": TITLES[name], "figures": _over_seeds(some)}
                for name, some in rows.items()
            },
        }
    )


def _projector(config: VqaConfig, folder: Path, progress: bool) -> Path | None:
    """The file of a seed's projector, trained if it is not there; ``None`` where it is the
    network's own."""
    asked = json.dumps(plain(config.model_dump()), sort_keys=True).encode()
    path = folder / f"seed-{config.seed}-{hashlib.sha256(asked).hexdigest()[:8]}.safetensors"
    if path.exists():
        return path
    seeing = open_seeing(config.network, config.image_size, config.seed)
    questions = read_questions(**config.questions())
    train = pictured(questions, seeing, config.prompt or seeing.prompt)["train"]
    with progress_bar(progress) as bar:
        found = own_projector(config, seeing, train, None, device_named(config.device), bar)
    if found is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda unfinished: save_file(found, unfinished))
    return path


def _figures(name: str, config: VqaConfig, place: Path, progress: bool) -> dict[str, float]:
    """A run's figures, with the seconds that it took; those that its folder holds if they are of
    the same settings."""
    asked = plain(config.model_dump())
    if (place / DONE).exists():
        done = read_json(place / DONE)
        if done["settings"] != asked:
            raise BellaError(
                f"{place} holds a run of other settings: name another --out, or take it away."
            )
        if (place / FIGURES).exists() and (place / ANSWERS).exists():
            return {**_numbers(read_json(place / FIGURES)), "seconds": done["seconds"]}
    begun = time.perf_counter()
    found = (
        _untrained(config, place, progress)
        if name == "untrained"
        else train_vqa(config, place, progress=progress)
    )
    seconds = round(time.perf_counter() - begun, 1)
    write_json(place / DONE, {"settings": asked, "seconds": seconds})
    return {**_numbers(found), "seconds": seconds}


def _untrained(config: VqaConfig, place: Path, progress: bool) -> dict[str, float]:
    """The answers of the network with its projector alone."""
    config = completed(config)
    device = device_named(config.device)
    seeing = open_seeing(config.network, config.image_size, config.seed)
    if config.projector is not None:
        load_projector(seeing.network, Path(config.projector))
    questions = read_questions(**config.questions())
    prompt = config.prompt or seeing.prompt
    tokens = config.answer_tokens or max(pictured(questions, seeing, prompt)["train"].kept - 1, 1)
    point = Point(seeing.network.to(device))
    run = VqaRun(point, seeing, prompt, config.columns, tokens, config.precision)
    with progress_bar(progress) as bar:
        rows = run.answer(questions["test"], bar)
    place.mkdir(parents=True, exist_ok=True)
    return keep(place, rows, run.posterior)


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Figures as numbers: a file has null where there is none."""
    return {name: float("nan") if x is None else float(x) for name, x in found.items()}


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in rows[0]:
        values = torch.tensor([row.get(name, float("nan")) for row in rows], dtype=torch.float64)
        spread = float(values.std()) if len(values) > 1 else None
        found[name] = {"mean": float(values.mean()), "spread": spread, "values": values.tolist()}
    return found


def page(results: Mapping[str, Any]) -> str:
    """The results as tables, one a kind of answer."""
    methods = results["methods"]
    asked = next(iter(methods.values()))["figures"]["questions"]["mean"]
    seeds = results["seeds"]
    lines = [
        f"{results['title']}; {seeds} seed{'s'[: seeds != 1]}, {results['device']}, torch "
        f"{results['versions']['torch']}, {results['date']}. Test questions: {asked:,.0f}.",
        "",
    ]
    for kind, title in KINDS.items():
        if not any(f"accuracy{kind}" in row["figures"] for row in methods.values()):
            continue
        columns = dict(COLUMNS)
        if not kind:
            columns |= {
                "auroc_errors_entropy": ("errors H", "{:.2f}"),
                "auroc_errors_mi": ("errors MI", "{:.2f}"),
                "seconds": ("seconds", "{:.0f}"),
            }
        heads = " | ".join(words for words, _ in columns.values())
        lines += [f"| {title} | {heads} |", "|:--" + "|--:" * len(columns) + "|"]
        for row in methods.values():
            figures = row["figures"]
            cells = [_cell(figures.get(name + kind), form) for name, (_, form) in columns.items()]
            lines.append(f"| {row['title']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None, form: str) -> str:
    """A mean with its spread over seeds; a dash where there is none."""
    if found is None or found["mean"] is None or found["mean"] != found["mean"]:
        return "-"
    spread = found["spread"]
    return form.format(found["mean"]) + ("" if spread is None else f" ±{form.format(spread)}")
