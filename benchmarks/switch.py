"""What the demo's figures lose in bf16: the same comparison in both precisions, paired over seeds.

    python benchmarks/switch.py [--quick]

About ten minutes on two quiet cores; stopped, it goes on where it was (``runs/switch-...``). What
all rows share is float32 in both where it is read once (the probes' features), and the cached
prefix is made in what is asked for.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch

from bella.experiments.compare import compare
from bella.experiments.tasks import task_named
from page import TARGETED, Options, Table, against, main
from timing import spread, square

METHODS = ("lora", "lora-ensemble", "repulsive")
SEEDS = 5
BOUNDS = {"nll": 0.002, "auroc": 0.005}
"""What the mean difference over methods and seeds may be."""


def figures(precision: str, seeds: int) -> dict[str, dict[str, list[float]]]:
    """By method and figure the values of the seeds, on the test part and on the shifts."""
    folder = Path("runs") / f"switch-{precision}"
    found = compare(task_named("elpv"), METHODS, seeds=seeds, folder=folder, precision=precision)
    values: dict[str, dict[str, list[float]]] = {}
    for name, method in found["methods"].items():
        parts = {"": method["figures"]} | {
            f" ({part})": kept for part, kept in method["parts"].items() if part != "validation"
        }
        values[name] = {
            f"{figure}{part}": row["values"]
            for part, rows in parts.items()
            for figure, row in rows.items()
            if figure == "nll" or (figure.startswith("auroc") and "novelty" not in figure)
        }
    return values


def measure(options: Options) -> tuple[float, list[Table]]:
    """All of it."""
    seeds = 1 if options.quick else SEEDS
    whole, fewer = (figures(precision, seeds) for precision in ("float32", "bf16"))
    rows, apart = [], {kind: [] for kind in BOUNDS}
    for method, kept in whole.items():
        for figure, values in kept.items():
            pairs = zip(values, fewer[method][figure], strict=True)
            found = [b - a for a, b in pairs if a is not None and b is not None]
            if not found:
                continue
            rows.append([method, figure.replace("_", " "), spread(found, 4)])
            apart["nll" if figure.startswith("nll") else "auroc"] += found
    checks = [
        against(
            f"mean difference of {kind}, over methods, parts and seeds",
            f"{statistics.mean(found):+.4f} ({len(found)} pairs)",
            abs(statistics.mean(found)),
            BOUNDS[kind],
        )
        for kind, found in apart.items()
    ]
    return square("cpu", torch.float32).rate, [
        Table(f"bf16 minus float32, solar cells, {seeds} seeds.", TARGETED, checks),
        Table("Each figure: median and range over the seeds.", ("row", "figure", "differs"), rows),
    ]


if __name__ == "__main__":
    main("switch", __doc__, measure)
