"""Memory of training and bytes on disk of sparse posteriors, each measured in a fresh process.

    python benchmarks/sparse_memory.py [--quick]

Peak is that of a few steps of SGD with momentum (see memory.py). The last row shows what does not
depend on the density: code, inputs, and one layer's dense gradient where the set changes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from torch import nn

import bella
from bella.posteriors.sparse.topology import Topology
from bella.storage import TENSORS
from memory import megabytes, peak
from page import Options, Table, main
from timing import square

DENSITIES = (1.0, 0.1, 0.05, 0.001)
DEPTH = 4


def posterior_of(density: float, width: int) -> bella.Posterior:
    """A few square layers."""
    layers = [m for _ in range(DEPTH) for m in (nn.Linear(width, width), nn.ReLU())]
    return bella.sparse_subspace(nn.Sequential(*layers), density=density)


def training(density: float, width: int, device: str) -> Callable[[], None]:
    """A few steps, changes of the active set among them."""
    posterior = posterior_of(density, width).to(device)
    topology = Topology(posterior, steps=20, interval=4)
    optimizer = torch.optim.SGD(posterior.parameter_groups(0.0), lr=1e-3, momentum=0.9)
    topology.follow(optimizer)
    x = torch.randn(8, width, device=device)

    def steps() -> None:
        for _ in range(9):
            optimizer.zero_grad()
            (posterior(x).square().mean() + 1e-8 * posterior.kl()).backward()
            if not topology.step():
                optimizer.step()

    return steps


def sizes(density: float, width: int, device: str) -> list[float]:
    """Bytes in memory at rest, at the peak, and on disk."""
    posterior = posterior_of(density, width)
    values = sum(x.numel() * x.element_size() for x in posterior.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        file = (posterior.save(folder) / TENSORS).stat().st_size
    return [values, peak(training, density, width, device, warmup=0), file]


def measure(options: Options) -> tuple[float, list[Table]]:
    """Every density."""
    width = 512 if options.quick else 3072
    found = {density: sizes(density, width, options.device) for density in DENSITIES}
    rows = [
        [f"{density:g}"]
        + [
            f"{megabytes(size)} ({whole / size:.1f}x less)"
            for size, whole in zip(figures, found[1.0], strict=True)
        ]
        for density, figures in found.items()
    ]
    title = f"Sparse posteriors, {DEPTH} Linear layers {width} x {width}."
    header = ("density", "posterior", "peak of training", "file")
    return square(options.device, options.dtype).rate, [Table(title, header, rows)]


if __name__ == "__main__":
    main("sparse_memory", __doc__, measure)
