"""Peak memory of training 100 particles in chunks against one full fine-tune: CLIP ViT-B/32.

    python benchmarks/training_memory.py [--quick] [--device cuda] [--autocast]

Each in a fresh process (see memory.py), the second of two steps of batch 32. Of 100 particles the
first two chunks and the last run; the others would run in the same memory. All 100 have gradients,
moments, coupling and an AdamW step. What recomputing takes in time is measured on one particle.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import bella
from alternatives import Chunked, Copies, Together
from memory import megabytes, peak
from networks import VIT
from page import TARGETED, Options, Table, against, main
from timing import paired, ratios, spread, square

FUNCTIONS = ("activation_fn",)  # of every block: elementwise, so that running them again is cheap


def recomputing(work: Together, modules: Sequence[str]) -> Together:
    """Of these modules only the inputs are kept; "blocks" is every block."""
    if modules:
        bella.checkpoint(work.posterior.train(), None if "blocks" in modules else modules)
    return work


def in_chunks(
    particles: int, chunk: int, batch: int, options: Options, *recomputed: str
) -> Callable[[], None]:
    """A training step, so many particles at a time; the first two passes and the last stand for
    all, which are alike."""
    firsts = range(0, particles, chunk)
    chunks = [range(i, min(i + chunk, particles)) for i in sorted({*firsts[:2], firsts[-1]})]
    work = recomputing(Chunked(VIT, particles, batch, options, chunks), recomputed)
    with work.posterior.subset(range(min(2, particles))):
        work.posterior.prove(work.x[:1])
    return work.step


def full(batch: int, options: Options, *recomputed: str) -> Callable[[], None]:
    """A step of all of one network's parameters."""
    work = Copies(VIT, 1, batch, options)
    if recomputed:
        work.models[0].train().network.gradient_checkpointing_enable()
    return work.step


def measure(options: Options) -> tuple[float, list[Table]]:
    """The ratios."""
    batch = 4 if options.quick else 32
    found = {
        "one full fine-tune": peak(full, batch, options),
        "one full fine-tune, blocks recomputed": peak(full, batch, options, "blocks"),
        "n=100, 1 a pass": peak(in_chunks, 100, 1, batch, options),
        "n=100, 1 a pass, activation functions recomputed": peak(
            in_chunks, 100, 1, batch, options, *FUNCTIONS
        ),
        "n=100, 1 a pass, blocks recomputed": peak(in_chunks, 100, 1, batch, options, "blocks"),
        "n=100, 3 a pass": peak(in_chunks, 100, 3, batch, options),
        "n=3, 3 a pass": peak(in_chunks, 3, 3, batch, options),
    }

    def row(above: str, below: str, target: float) -> list[str]:
        a, b = found[above], found[below]
        shown = f"{a / b:.3f} ({megabytes(a)} of {megabytes(b)})"
        return against(f"{above} / {below}", shown, a / b, target)

    rows = [
        row("n=100, 1 a pass", "one full fine-tune", 0.85),
        row("n=100, 1 a pass, activation functions recomputed", "one full fine-tune", 0.85),
        row("n=100, 1 a pass, blocks recomputed", "one full fine-tune, blocks recomputed", 0.85),
        row("n=100, 3 a pass", "n=3, 3 a pass", 1.158),
    ]
    title = f"{VIT.title}, 12 blocks, batch {batch}, peak of a training step."
    machine = square(options.device, options.dtype)
    steps = {
        name: recomputing(Together(VIT, 1, batch, options), modules).step
        for name, modules in {
            "nothing": (),
            "activation functions": FUNCTIONS,
            "blocks": ("blocks",),
        }.items()
    }
    seconds = paired("recomputing", steps, options.until(), beside={"product": machine})
    times = [
        [
            name,
            f"{statistics.median(seconds[name]) * 1e3:,.0f} ms",
            spread(ratios(seconds[name], seconds["nothing"])),
        ]
        for name in steps
    ]
    return machine.rate, [
        Table(title, TARGETED, rows),
        Table("One particle, the same batch.", ("recomputed", "step", "ratio"), times),
    ]


if __name__ == "__main__":
    main("training_memory", __doc__, measure)
