"""The methods of a comparison: one file a family, each with its rows.

A new method is a new file with a `Method` and its ``ROWS``, and its name in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bella.errors import BellaError, nearest
from bella.experiments.methods import (
    derived,
    distilled,
    full,
    laplace,
    low_rank,
    multi_depth,
    pooled,
    probe,
    rank1,
    sparse,
    untrained,
)
from bella.experiments.methods.base import Costs, Method, Outputs
from bella.experiments.tasks.task import Task

__all__ = [
    "DEMO",
    "METHODS",
    "Costs",
    "Method",
    "Outputs",
    "methods_named",
    "names_of",
    "usual_methods",
]

FAMILIES = (
    *(untrained, probe, full, low_rank, multi_depth, laplace, rank1, sparse),
    *(derived, distilled, pooled),
)

METHODS: dict[str, Method] = {row.name: row for family in FAMILIES for row in family.ROWS}

DEMO = (
    "probe",
    "probe-ensemble",
    "lora",
    "lora+temperature",
    "lora-ensemble",
    "lora-ensemble+temperature",
    "repulsive",
    "anchors",
    "bella",
)
"""What the demo compares."""


USUAL = ("probe", "lora+temperature", "lora-ensemble+temperature", "anchors", "bella")
WITHOUT_HEAD = ("untrained", "lora+temperature", "lora-ensemble+temperature", "bella+temperature")


def usual_methods(task: Task) -> tuple[str, ...]:
    """What is compared where nobody says: no readouts of a network that answers without a head."""
    return USUAL if task.open(0).defaults.modules_to_save else WITHOUT_HEAD


def methods_named(wanted: Sequence[str | Method]) -> list[Method]:
    """Methods by name, with those that they start from before them, in the order asked for.

    Args:
        wanted: names in `METHODS`, or methods that stand beside those.

    Raises:
        BellaError: an unknown name.
    """
    known = METHODS | {method.name: method for method in wanted if isinstance(method, Method)}
    found: dict[str, Method] = {}
    for name in names_of(wanted):
        if name not in known:
            raise BellaError(f"method {name!r} is unknown: near names are {nearest(name, known)}.")
        for needed in (*known[name].needs, name):
            found.setdefault(needed, known[needed])
    return list(found.values())


def names_of(wanted: Sequence[str | Method]) -> list[str]:
    """The names of methods, which may be given as such."""
    return [method if isinstance(method, str) else method.name for method in wanted]
