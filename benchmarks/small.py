"""Batch 1, a service's case: five particles in each precision, CLIP ViT-B/32.

    python benchmarks/small.py [--quick] [--device cuda]

The ways are those of ``precision.py``.
"""

from __future__ import annotations

from contextlib import ExitStack

from networks import VIT
from page import TARGETED, Options, Table, main
from precision import N, seconds_at, table, targets


def measure(options: Options) -> tuple[float, list[Table]]:
    """All of it."""
    with ExitStack() as stack:
        found = seconds_at(1, options, stack, predictions=True)
    return found["rate"]["float32"][0], [
        Table(f"{VIT.title}, 12 blocks, n={N}.", TARGETED, targets(1, found)),
        table(1, found),
    ]


if __name__ == "__main__":
    main("small", __doc__, measure)
