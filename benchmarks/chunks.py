"""Fifty particles in chunks against one pass of all: prediction, ViT-S/32, batch 32.

    python benchmarks/chunks.py [--chunk N] [--quick] [--device cuda] [--autocast]

Training fifty in one pass, or patches of 16 pixels, would not fit this machine's memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal

import torch

import bella
from memory import megabytes, peak
from networks import SMALL_VIT
from page import TARGETED, Options, Table, against, main
from timing import paired, ratios, spread, square

Size = int | Literal["auto"] | None
Predict = Callable[[Size], bella.Predictive]


def prediction(particles: int, batch: int, options: Options) -> Predict:
    """A function of the number of particles a pass; ``None`` is all of them."""
    posterior = SMALL_VIT.posterior(particles, options.device).eval()
    x, _ = SMALL_VIT.data(batch, options.device)
    with posterior.subset(range(2)):
        posterior.prove(x)

    def predict(chunk: Size) -> bella.Predictive:
        with options.precision(), torch.inference_mode():
            return bella.predict(posterior, posterior.prefix(x), particles_per_pass=chunk)

    return predict


def alone(chunk: Size, particles: int, batch: int, options: Options) -> Callable[[], object]:
    """The work of a process that does nothing else."""
    predict = prediction(particles, batch, options)
    return lambda: predict(chunk)


def measure(options: Options) -> tuple[float, list[Table]]:
    """Time and memory."""
    n, batch = (6, 8) if options.quick else (50, 32)
    chunk: Size = options.chunk or "auto"
    predict = prediction(n, batch, options)
    machine = square(options.device, options.dtype)
    seconds = paired(
        f"n={n}",
        {
            "one pass": lambda: predict(None),
            "chunks": lambda: predict(chunk),
        },
        options.until(),
        beside={"product": machine},
    )
    time = ratios(seconds["chunks"], seconds["one pass"])
    chunked, whole = (peak(alone, size, n, batch, options) for size in (chunk, None))
    rows = [
        against("time, chunks / one pass", spread(time), statistics.median(time), 0.8),
        against(
            "peak memory, chunks / one pass",
            f"{chunked / whole:.3f} ({megabytes(chunked)} of {megabytes(whole)})",
            chunked / whole,
            0.5,
        ),
    ]
    title = f"{SMALL_VIT.title}, n={n}, batch {batch}, particles a pass: {chunk}."
    return machine.rate, [Table(title, TARGETED, rows)]


if __name__ == "__main__":
    main("chunks", __doc__, measure)
