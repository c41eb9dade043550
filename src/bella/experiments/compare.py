"""Run methods on a task over several seeds; go on where an interrupted comparison stopped.

The folder holds one sub-folder a run with its figures and predictions. What is there is not run
again, as long as it is of the same network, data, split, settings and version of bella.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

import bella
from bella.console import progress_bar
from bella.errors import BellaError
from bella.evaluation.evaluate import known_figures, shifted_figures
from bella.experiments.bench import Bench
from bella.experiments.methods import Method, methods_named, names_of
from bella.experiments.predictions import write_outputs
from bella.experiments.tasks.task import Task
from bella.files import plain, read_json, write_json
from bella.folders import held
from bella.host import versions
from bella.metrics.paired import overlap_of_draws
from bella.recipes import KINDS
from bella.report.claims import claims
from bella.report.tables import FORMAT
from bella.training.cache import are_fixed
from bella.training.settings import Settings, checked


@dataclass(frozen=True)
class Row:
    """One method with one seed.

    Attributes:
        figures: on the test part.
        parts: on each other part, by its name.
        costs: see `bella.experiments.methods.base.Costs`.
    """

    figures: dict[str, float]
    parts: dict[str, dict[str, float]]
    costs: dict[str, float]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Row:
        """A row from a file, where NaN is null."""

        def numbers(values: Mapping[str, Any]) -> dict[str, float]:
            return {name: math.nan if v is None else v for name, v in values.items()}

        parts = {part: numbers(values) for part, values in found["parts"].items()}
        return cls(numbers(found["figures"]), parts, numbers(found["costs"]))


def compare(
    task: Task,
    methods: Sequence[str | Method],
    *,
    seeds: int = 3,
    folder: str | Path,
    progress: bool = True,
    device: str | None = None,
    workers: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Compare methods on the same network, data, budget and seeds.

    Args:
        task: the data and the network.
        methods: names in `bella.experiments.methods.METHODS`, or methods that stand beside those;
            the table has this order.
        seeds: how many; each decides the split (where the task has none of its own), the factors,
            the order of the data and the noise.
        folder: for ``results.json`` and the runs.
        progress: show bars.
        device: where everything runs, such as ``cpu`` or ``cuda``; the accelerator if there is one.
        workers: processes that read images; 0 reads them in this one. Where training images change
            from epoch to epoch the changes are drawn in them, so they are part of what decides a
            run.
        **settings: of `bella.fit`, in place of the task's.

    Returns:
        What ``results.json`` holds: per method the figures of every seed, their mean and spread
        (standard deviation over seeds; null for one seed): ``figures`` on the test part, ``parts``
        on each other part by its name, and ``costs``.

    Raises:
        BellaError: unknown methods, settings out of range, or another comparison in the folder that
            has not ended.
    """
    if seeds < 1:
        raise BellaError(f"seeds={seeds}: give a whole number of at least 1.")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise BellaError(f"workers={workers!r}: give a whole number of at least 0.")
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
    with held(folder), progress_bar(progress) as bar:
        bench = Bench(task, folder, task.settings_with(settings), bar, device, workers)
        bench.reads = any(method.reads for method in chosen)
        checked(Settings, bench.settings)
        steps = bar.add_task("methods", total=seeds * len(chosen))
        rows: dict[str, list[Row]] = {method.name: [] for method in chosen}
        for seed in range(seeds):
            for method in chosen:
                bar.update(steps, description=f"{method.title}, seed {seed}")
                resumed |= kept(bench, method, seed) is not None
                rows[method.name].append(figures(bench, method, seed))
                bar.advance(steps)
        results = results_of(
            bench,
            [method for method in chosen if method.name in names_of(methods)],
            rows,
            None if resumed else round(time.perf_counter() - begun, 1),
        )
        write_json(folder / "results.json", results)
    return plain(results)


def results_of(
    bench: Bench,
    methods: Sequence[Method],
    rows: Mapping[str, Sequence[Row]],
    seconds: float | None,
) -> dict[str, Any]:
    """What ``results.json`` holds.

    Args:
        bench: what the rows were run on.
        methods: those of the table, in its order.
        rows: by method, one a seed.
        seconds: the whole took; ``None`` if parts of it stood there before.
    """
    task, seeds = bench.task, len(next(iter(rows.values())))
    results = {
        "format": FORMAT,
        "task": task.name,
        "title": task.title,
        "seeds": seeds,
        "settings": bench.settings,
        "low_rank": {"rank": task.rank, **KINDS["low-rank"].build, **task.build},
        "parts": {name: len(positions) for name, (_, positions) in task.split(0).items()},
        **seeds_share(task, seeds),
        "shifts": list(task.shifts),
        "shifted": dict(task.shifts),
        "source": dict(task.source),
        "words": {
            "examples": task.words.examples,
            "noticing": task.words.noticing,
            "unscored": task.words.unscored,
        },
        "versions": versions(bench.device),
        "date": date.today().isoformat(),
        "seconds": seconds,
        "methods": {
            method.name: {"title": method.title, **summary(rows[method.name])} for method in methods
        },
    }
    return results | {"claims": [asdict(claim) for claim in claims(results)]}


def seeds_share(task: Task, seeds: int) -> dict[str, Any]:
    """Which data the seeds of a task share, and how alike their figures are for that.

    Returns:
        ``splits``: ``each seed`` where each has a test part of its own, ``training data`` where
        they share one and learn from different examples, ``all seeds`` where they share all.
        ``overlap``: for `bella.metrics.paired.paired_test`.
    """
    parts = [task.split(seed) for seed in range(max(seeds, 2))]
    train = [{(pool, row) for row in rows} for pool, rows in (part["train"] for part in parts)]
    if any(part["test"] != parts[0]["test"] for part in parts):
        return {"splits": "each seed", "overlap": len(parts[0]["test"][1]) / len(train[0])}
    if all(one == train[0] for one in train):
        return {"splits": "all seeds", "overlap": 0.0}
    shared = [len(a & b) / len(a) for a, b in combinations(train, 2)]
    return {"splits": "training data", "overlap": overlap_of_draws(sum(shared) / len(shared))}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean, spread and values of each figure over the seeds, by the part that it is of."""
    return {
        "figures": _over_seeds([row.figures for row in rows]),
        "parts": {part: _over_seeds([row.parts[part] for row in rows]) for part in rows[0].parts},
        "costs": _over_seeds([row.costs for row in rows]),
    }


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        spread = float(values.std()) if len(values) > 1 else None
        found[name] = {"mean": float(values.mean()), "spread": spread, "values": values.tolist()}
    return found


def key_of(bench: Bench, method: Method, seed: int) -> dict[str, Any]:
    """What a run is decided by."""
    known = {
        "task": bench.task.name,
        "seed": seed,
        "network": bench.network_of(seed),
        "data": bench.data_of(seed),
        "version": bella.__version__,
    }
    if bench.workers and not all(map(are_fixed, bench.task.pools.values())):
        known["workers"] = bench.workers
    return plain(known | method.key(bench, seed))


def kept(bench: Bench, method: Method, seed: int) -> Row | None:
    """The figures of a run that its folder holds already."""
    path = bench.place(method.name, seed) / "figures.json"
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("key") != key_of(bench, method, seed):
        return None
    try:
        return Row.of(found)
    except (KeyError, TypeError, AttributeError):
        raise BellaError(f"{path} is damaged: take it away, and its run is done again.") from None


def figures(bench: Bench, method: Method, seed: int) -> Row:
    """One method with one seed: its figures, from the folder if they are there."""
    if (found := kept(bench, method, seed)) is not None:
        return found
    place = bench.place(method.name, seed)
    outputs, costs = method.run(bench, seed, place)
    predictives = {name: predictive for name, (predictive, _) in outputs.items()}
    labels = {name: y for name, (_, y) in outputs.items()}
    validation = float(predictives["validation"].nll(labels["validation"]))
    shifted = {
        name: shifted_figures(predictives["test"], labels["test"], predictives[part], labels[part])
        for name, part in bench.task.shifts.items()
    }
    row = Row(
        known_figures(predictives["test"], labels["test"]),
        {"validation": {"nll": validation}, **shifted},
        costs,
    )
    place.mkdir(parents=True, exist_ok=True)
    write_outputs(place, outputs)
    write_json(place / "figures.json", {"key": key_of(bench, method, seed), **asdict(row)})
    gc.collect()
    return row
