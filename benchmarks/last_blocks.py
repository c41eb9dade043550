"""Adapting the last 4 of 12 blocks against all 12: CLIP ViT-B/32, 5 particles, batch 8.

    python benchmarks/last_blocks.py [--quick] [--device cuda] [--autocast]

What comes before the first adapted block runs once for all particles. Kept for the data set, it
runs once in all; building the cache is counted, over 3 epochs.
"""

from __future__ import annotations

import statistics

from torch.utils.data import DataLoader, TensorDataset

from alternatives import Together
from bella.inputs import to
from bella.training.cache import CachedPrefix
from networks import LAST_BLOCKS, VIT
from page import TARGETED, Options, Table, against, main
from timing import paired, ratios, spread, square

EPOCHS, BATCHES = 3, 2


def measure(options: Options) -> tuple[float, list[Table]]:
    """With and without the cache."""
    batch = 2 if options.quick else 8
    every, last = (Together(case, 5, batch, options) for case in (VIT, LAST_BLOCKS))
    images = TensorDataset(*VIT.data(BATCHES * batch))
    last.posterior.prove(last.x)

    def epochs_from_cache() -> None:
        with options.precision():
            kept = CachedPrefix(last.posterior, images, batch_size=batch)
        for _ in range(EPOCHS):
            for stream, last.y in DataLoader(kept, batch, collate_fn=kept.batch):
                last.y = last.y.to(options.device)
                last.step(to(stream, options.device))

    machine = square(options.device, options.dtype)
    seconds = paired(
        "last blocks",
        {
            "all 12": every.step,
            "last 4": last.step,
            "last 4, cached, 3 epochs": epochs_from_cache,
        },
        options.until(),
        beside={"product": machine},
    )
    whole = seconds["all 12"]
    steps = EPOCHS * BATCHES
    rows = [
        ("step", ratios(seconds["last 4"], whole), 0.45),
        (
            "3 epochs, cached prefix, cache built",
            ratios(seconds["last 4, cached, 3 epochs"], [s * steps for s in whole]),
            0.40,
        ),
    ]
    return machine.rate, [
        Table(
            f"{VIT.title}, n=5, batch {batch}: last 4 blocks / all 12.",
            TARGETED,
            [
                against(name, spread(found), statistics.median(found), target)
                for name, found, target in rows
            ],
        )
    ]


if __name__ == "__main__":
    main("last_blocks", __doc__, measure)
