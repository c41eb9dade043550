"""A hundred particles at batch 2 against a hundred PEFT steps: CLIP ViT-B/32, bf16.

    python benchmarks/hundred.py [--quick] [--device cuda]

Both under autocast, bella's base held in bfloat16. A hundred PEFT steps are ten, ten times: they
are alike. The particles run as many a pass as bella chooses, and one a pass.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import replace

import torch

from alternatives import Chunked, Sequential
from bella.precision import base_in
from networks import VIT
from page import TARGETED, Options, Table, against, main
from timing import paired, ratios, spread, square

TEN, BATCH = 10, 2


def measure(options: Options) -> tuple[float, list[Table]]:
    """The ratios."""
    particles = 20 if options.quick else 100
    fewer = replace(options, autocast=True)
    machine = square(options.device, fewer.dtype)
    ten = Sequential(VIT, TEN, BATCH, fewer)
    with ExitStack() as stack:
        own, single = (
            Chunked(VIT, particles, BATCH, fewer, chunks)
            for chunks in (None, [[i] for i in range(particles)])
        )
        for work in (own, single):
            stack.enter_context(base_in(work.posterior, torch.bfloat16))
            with fewer.precision():
                work.posterior.prefix(work.x)  # proven, so that no round has to warm up
        ways = {"PEFT": ten.step, "own": own.step, "single": single.step}
        beside = {"product": machine}
        seconds = paired("n=100", ways, options.until(), beside=beside, warmup=0)
    peft = [particles / TEN * s for s in seconds["PEFT"]]
    rows = [
        (f"{len(own.chunks[0])} a pass", ratios(seconds["own"], peft), 0.6),
        ("1 a pass", ratios(seconds["single"], peft), 1.0),
    ]
    title = (
        f"{VIT.title}, n={particles}, batch {BATCH}, bf16: a step / {particles} PEFT steps; "
        f"{statistics.median(peft):.1f} s."
    )
    return machine.rate, [
        Table(
            title,
            TARGETED,
            [against(name, spread(r), statistics.median(r), target) for name, r, target in rows],
        )
    ]


if __name__ == "__main__":
    main("hundred", __doc__, measure)
