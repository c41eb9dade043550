"""Memory of training and bytes on disk of sparse posteriors, each measured in a fresh process.

    python benchmarks/sparse_memory.py

Peak is the growth of the process's resident memory over a few steps of SGD with momentum, from
before the gradients exist, with the values themselves. The last row shows what does not depend on
the density: code, inputs, and one layer's dense gradient where the set changes. Linux with glibc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import bella
from bella.storage import TENSORS
from bella.variational.topology import Topology

DENSITIES = (1.0, 0.1, 0.05, 0.001)
WIDTH, DEPTH = 3072, 4


def status(field: str) -> int:
    """A figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(density: float) -> dict[str, float]:
    """Train a few steps and save."""
    layers = [m for _ in range(DEPTH) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    posterior = bella.sparse_subspace(nn.Sequential(*layers), density=density)
    values = sum(x.numel() * x.element_size() for x in posterior.state_dict().values())
    topology = Topology(posterior, steps=20, interval=4)
    optimizer = topology.follow(
        torch.optim.SGD(posterior.parameter_groups(0.0), lr=1e-3, momentum=0.9)
    )
    x = torch.randn(8, WIDTH)
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    before = status("VmRSS")
    for step in range(9):
        optimizer.zero_grad()
        (posterior(x).square().mean() + 1e-8 * posterior.kl()).backward()
        if not topology(step):
            optimizer.step()
    grown = status("VmHWM") - before
    with tempfile.TemporaryDirectory() as folder:
        file = (posterior.save(folder) / TENSORS).stat().st_size
    return {"posterior": values, "peak": values + grown, "file": file}


def main() -> None:
    """Print the table."""
    found = {}
    # Freed tensors go back to the system at once, so that the process's size is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    for density in DENSITIES:
        command = [sys.executable, __file__, str(density)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
        found[density] = json.loads(done.stdout)
    print(f"{DEPTH} Linear layers {WIDTH} x {WIDTH}; MB, and how many times less than density 1")
    for density, figures in found.items():
        cells = [
            f"{name} {value / 1e6:8.1f} ({found[1.0][name] / value:5.1f}x)"
            for name, value in figures.items()
        ]
        print(f"density {density:<5} " + "   ".join(cells))


if __name__ == "__main__":
    torch.manual_seed(0)
    if len(sys.argv) > 1:
        print(json.dumps(measure(float(sys.argv[1]))))
    else:
        main()
