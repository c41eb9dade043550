"""What the demo's figures lose in bf16: the same comparison in both precisions, paired over seeds.

    python benchmarks/switch.py [--quick]

About ten minutes on two quiet cores; stopped, it goes on where it was (``runs/switch-...``). What
all rows share is float32 in both: the probes' features, and the cached prefix, because this network
gains nothing by fewer bits (`bella.precision.Precision.once`).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
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
HEADINGS = ("row", "part", "figure", "differs")


def figures(precision: str, seeds: int) -> dict[str, dict[tuple[str, str], list[float]]]:
    """By method the values of the seeds, by part (of the test and the shifts) and figure."""
    folder = Path("runs") / f"switch-{precision}"
    found = compare(task_named("elpv"), METHODS, seeds=seeds, folder=folder, precision=precision)
    return {
        name: {
            (part, figure): row["values"]
            for part, rows in ({"test": method["figures"]} | method["parts"]).items()
            for figure, row in rows.items()
            if part != "validation" and kind_of(figure)
        }
        for name, method in found["methods"].items()
    }


def kind_of(figure: str) -> str | None:
    """Which bound a figure has."""
    if "novelty" in figure:
        return None
    return next((kind for kind in BOUNDS if figure.startswith(kind)), None)


def measure(options: Options) -> tuple[float, list[Table]]:
    """All of it."""
    seeds = 1 if options.quick else SEEDS
    whole, fewer = (figures(precision, seeds) for precision in ("float32", "bf16"))
    rows, apart = [], defaultdict(list)
    for method, kept in whole.items():
        for (part, figure), values in kept.items():
            pairs = zip(values, fewer[method][part, figure], strict=True)
            found = [b - a for a, b in pairs if a is not None and b is not None]
            if found:
                rows.append([method, part, figure.replace("_", " "), spread(found, 4)])
                apart[kind_of(figure), part] += found
    parts = list(dict.fromkeys(part for _, part in apart))
    by_part = [[kind, *(mean_of(apart[kind, part]) for part in parts)] for kind in BOUNDS]
    checks = []
    for kind, bound in BOUNDS.items():
        found = [x for part in parts for x in apart[kind, part]]
        name = f"mean difference of {kind}, over methods, parts and seeds"
        shown = f"{statistics.mean(found):+.4f} ({len(found)} pairs)"
        checks.append(against(name, shown, abs(statistics.mean(found)), bound))
    return square("cpu", torch.float32).rate, [
        Table(f"bf16 minus float32, solar cells, {seeds} seeds.", TARGETED, checks),
        Table(
            "By part: mean over methods and seeds, and its standard error.", ("", *parts), by_part
        ),
        Table("Each figure: median and range over the seeds.", HEADINGS, rows),
    ]


def mean_of(found: Sequence[float]) -> str:
    """A mean with its standard error, where there is one."""
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else math.nan
    return f"{statistics.mean(found):+.4f} ± {error:.4f}"


if __name__ == "__main__":
    main("switch", __doc__, measure)
