"""Bytes of a saved posterior: 100 particles of CLIP ViT-B/32 at rank 4.

python benchmarks/file_size.py
"""

from __future__ import annotations

import torch

from alternatives import saved
from networks import VIT
from page import TARGETED, Options, Table, against, main
from timing import square

SETTINGS = 1e6
"""Bytes allowed beside the numbers."""


def measure(options: Options) -> tuple[float, list[Table]]:
    """In both precisions."""
    posterior = VIT.posterior(100)
    rows = []
    for name, dtype, numbers in (
        ("float32", None, 147.5e6),
        ("bfloat16", torch.bfloat16, 73.8e6),
    ):
        size = saved(posterior, dtype)
        limit = (numbers + SETTINGS) / 1e6
        rows.append(against(f"{name}, MB", f"{size / 1e6:.2f}", size / 1e6, limit))
    return square(options.device, options.dtype).rate, [
        Table(f"{VIT.title}, n=100, rank 4.", TARGETED, rows)
    ]


if __name__ == "__main__":
    main("file_size", __doc__, measure)
