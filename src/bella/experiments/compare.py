"""Run methods on a task over several seeds; go on where an interrupted comparison stopped.

The folder holds one sub-folder a run with its figures and predictions. What is there is not run
again, as long as it was run with the same settings.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bella.console import progress_bar
from bella.errors import BellaError
from bella.evaluation.evaluate import evaluate_predictive
from bella.experiments.bench import Bench
from bella.experiments.methods import Method, methods_named
from bella.experiments.tasks.task import Task
from bella.files import plain, read_json, write_json, write_whole
from bella.host import versions
from bella.prediction.predictive import Predictive
from bella.training.settings import Settings, checked


def compare(
    task: Task,
    methods: Sequence[str],
    *,
    seeds: int = 3,
    folder: str | Path,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Compare methods on the same network, data, budget and seeds.

    Args:
        task: the data and the network.
        methods: names in `bella.experiments.methods.METHODS`; the table has this order.
        seeds: how many; each decides the split (where the task has none of its own), the factors,
            the order of the data and the noise.
        folder: for ``results.json`` and the runs.
        progress: show bars.
        **settings: of `bella.fit`, in place of the task's.

    Returns:
        What ``results.json`` holds: per method the figures of every seed, their mean and spread
        (standard deviation over seeds; null for one seed).

    Raises:
        BellaError: unknown methods, or settings out of range.
    """
    if seeds < 1:
        raise BellaError(f"seeds={seeds}: give a whole number of at least 1.")
    chosen = methods_named(list(methods))
    for method in chosen:
        if not (task.pretrained or method.from_scratch):
            raise BellaError(
                f"method {method.name!r} adapts a pre-trained network, and {task.name} trains one "
                "from scratch: leave it out."
            )
    folder = Path(folder)
    resumed = False  # the wall time of a part says nothing of the whole
    begun = time.perf_counter()
    with progress_bar(progress) as bar:
        bench = Bench(task, folder, dict(task.settings) | settings, bar)
        checked(Settings, bench.settings)
        steps = bar.add_task("methods", total=seeds * len(chosen))
        rows: dict[str, list[dict[str, float]]] = {method.name: [] for method in chosen}
        for seed in range(seeds):
            for method in chosen:
                bar.update(steps, description=f"{method.title}, seed {seed}")
                resumed |= kept(bench, method, seed) is not None
                rows[method.name].append(figures(bench, method, seed))
                bar.advance(steps)
    results = {
        "task": task.name,
        "title": task.title,
        "seeds": seeds,
        "settings": bench.settings,
        "low_rank": {"rank": task.rank, **task.build, "frozen_heads": task.frozen_heads},
        "parts": {name: len(positions) for name, (_, positions) in task.split(0).items()},
        "versions": versions(),
        "date": date.today().isoformat(),
        "seconds": None if resumed else round(time.perf_counter() - begun, 1),
        "methods": {
            method.name: {"title": method.title, "figures": summary(rows[method.name])}
            for method in chosen
            if method.name in methods
        },
    }
    write_json(folder / "results.json", results)
    return plain(results)


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, spread and values of each figure over the seeds."""
    found = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        spread = float(values.std()) if len(values) > 1 else None
        found[name] = {"mean": float(values.mean()), "spread": spread, "values": values.tolist()}
    return found


def key_of(bench: Bench, method: Method, seed: int) -> dict[str, Any]:
    """What a run is decided by."""
    return plain({"task": bench.task.name, "seed": seed} | method.key(bench, seed))


def kept(bench: Bench, method: Method, seed: int) -> dict[str, float] | None:
    """The figures of a run that its folder holds already."""
    path = bench.place(method.name, seed) / "figures.json"
    if not path.exists() or (found := read_json(path))["key"] != key_of(bench, method, seed):
        return None
    return {name: math.nan if v is None else v for name, v in found["figures"].items()}


def figures(bench: Bench, method: Method, seed: int) -> dict[str, float]:
    """One method with one seed: its figures, from the folder if they are there."""
    if (found := kept(bench, method, seed)) is not None:
        return found
    place = bench.place(method.name, seed)
    outputs, costs = method.run(bench, seed, place)
    predictives = {name: Predictive(logits) for name, (logits, _) in outputs.items()}
    labels = {name: y for name, (_, y) in outputs.items()}
    row = evaluate_predictive(
        predictives["test"],
        labels["test"],
        ood={name: (predictives[p], labels[p]) for name, p in bench.task.shifts.items()},
    )
    row["validation_nll"] = float(predictives["validation"].nll(labels["validation"]))
    row |= costs
    tensors = {
        f"{name}.{kind}": value.contiguous()
        for name, pair in outputs.items()
        for kind, value in zip(("logits", "labels"), pair, strict=True)
    }
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / "predictions.safetensors", lambda path: save_file(tensors, path))
    write_json(place / "figures.json", {"key": key_of(bench, method, seed), "figures": row})
    gc.collect()
    return row
