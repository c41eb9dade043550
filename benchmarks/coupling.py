"""The share of the coupling between particles in a training step: CLIP ViT-B/32, batch 32.

    python benchmarks/coupling.py [--quick] [--device cuda] [--autocast]

The coupling is timed as it is, for 5 and for 100 particles. So is the step of 5; a step of 100
takes minutes on a CPU and is taken as 20 of those.
"""

from __future__ import annotations

import statistics

from alternatives import Together
from networks import VIT
from page import TARGETED, Options, Table, against, main
from timing import paired, ratios, spread, square


def measure(options: Options) -> tuple[float, list[Table]]:
    """Both numbers of particles."""
    batch = 2 if options.quick else 32
    few, many = (Together(VIT, n, batch, options) for n in (5, 100))
    with many.posterior.subset(range(2)):
        many.gradients()  # the coupling adds to gradients that exist
    machine = square(options.device, options.dtype)
    seconds = paired(
        "coupling",
        {
            "step of 5": few.step,
            "5 particles": few.move.step,
            "100 particles": many.move.step,
        },
        options.until(),
        beside={"product": machine},
    )
    step = seconds["step of 5"]
    rows = []
    for n, target in ((5, 0.01), (100, 0.02)):
        found = ratios(seconds[f"{n} particles"], [s * n / 5 for s in step])
        name = f"coupling / step, n={n}"
        rows.append(against(name, spread(found, 4), statistics.median(found), target))
    return machine.rate, [Table(f"{VIT.title}, 12 blocks, batch {batch}.", TARGETED, rows)]


if __name__ == "__main__":
    main("coupling", __doc__, measure)
