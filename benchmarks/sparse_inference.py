"""Wall time of sparse layers against dense ones: where sparsity pays, and where it does not.

    python benchmarks/sparse_inference.py

Sparse and dense calls alternate, and the median of the paired ratios is printed: above 1, the
sparse layer is the faster one. "mean" is compared with the plain layer, "draw" (two products and
noise) with the same layer at density 1, which is dense mean-field VI.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import bella

DENSITIES = (0.2, 0.1, 0.05, 0.02)


def seconds(call: Callable[[], Tensor], repeats: int) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begun) / repeats


@torch.no_grad()
def ratio(dense: Callable[[], Tensor], sparse: Callable[[], Tensor], pairs: int = 15) -> float:
    """Median over pairs of the dense call's time over the sparse call's."""
    repeats = max(1, round(0.01 / min(seconds(dense, 2), seconds(dense, 2))))
    sparse()
    return median(seconds(dense, repeats) / seconds(sparse, repeats) for _ in range(pairs))


def compare(make: Callable[[], nn.Module], x: Tensor, density: float) -> tuple[float, float]:
    """Ratios of one layer: of the mean weight's outputs, and of draws."""
    plain = make()

    def posterior_of(density: float) -> bella.Posterior:
        network = nn.Sequential(make())
        return bella.sparse_subspace(network, density=density, dense_modules=()).eval()

    sparse, dense = posterior_of(density), posterior_of(1.0)
    draw = ratio(lambda: dense(x), lambda: sparse(x))
    with sparse.at_mean():
        mean = ratio(lambda: plain(x), lambda: sparse(x))
    return mean, draw


def main() -> None:
    """Print the table."""
    print(f"threads: {torch.get_num_threads()}; times faster than dense, mean / draw")
    cases: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        f"Linear {n} x {n}, batch {batch}": (lambda n=n: nn.Linear(n, n), torch.randn(batch, n))
        for n in (512, 2048)
        for batch in (1, 32, 256)
    }
    for channels, side in ((64, 32), (256, 8)):
        cases[f"Conv2d {channels}, 3x3, {side}x{side}, batch 32"] = (
            lambda c=channels: nn.Conv2d(c, c, 3, padding=1),
            torch.randn(32, channels, side, side),
        )
    print(f"{'':38}" + "".join(f"{f'density {d:g}':>16}" for d in DENSITIES))
    for name, (make, x) in cases.items():
        figures = [compare(make, x, density) for density in DENSITIES]
        print(f"{name:38}" + "".join(f"{f'{m:.2f} / {d:.2f}':>16}" for m, d in figures))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
