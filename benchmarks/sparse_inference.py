"""Wall time of sparse layers against dense ones: where sparsity pays, and where it does not.

    python benchmarks/sparse_inference.py [--quick]

Sparse and dense calls alternate, and the median of the paired ratios is given: above 1, the sparse
layer is the faster one. "mean" is compared with the plain layer, "draw" (two products and noise)
with the same layer at density 1, which is dense mean-field VI.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import bella
from bella.console import progress_bar
from page import Options, Table, main
from timing import square, timed

DENSITIES = (0.2, 0.1, 0.05, 0.02)


@torch.no_grad()
def ratio(dense: Callable[[], Tensor], sparse: Callable[[], Tensor], pairs: int) -> float:
    """Median over pairs of the dense call's time over the sparse call's."""
    dense(), sparse()
    repeats = range(max(1, round(0.01 / timed(dense))))

    def seconds(call: Callable[[], Tensor]) -> float:
        return timed(lambda: [call() for _ in repeats])

    return median(seconds(dense) / seconds(sparse) for _ in range(pairs))


def compare(
    make: Callable[[], nn.Module], x: Tensor, density: float, pairs: int
) -> tuple[float, float]:
    """Ratios of one layer: of the mean weight's outputs, and of draws."""
    plain = make().to(x.device)

    def posterior_of(density: float) -> bella.Posterior:
        network = nn.Sequential(make())
        made = bella.sparse_subspace(network, density=density, dense_modules=())
        return made.to(x.device).eval()

    sparse, dense = posterior_of(density), posterior_of(1.0)
    draw = ratio(lambda: dense(x), lambda: sparse(x), pairs)
    with sparse.at_mean():
        mean = ratio(lambda: plain(x), lambda: sparse(x), pairs)
    return mean, draw


def measure(options: Options) -> tuple[float, list[Table]]:
    """Every layer at every density."""
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
    pairs = 2 if options.quick else 15
    rows = []
    with progress_bar() as bar:
        for name, (make, x) in bar.track(cases.items(), description="sparse layers"):
            found = [compare(make, x.to(options.device), d, pairs) for d in DENSITIES]
            rows.append([name, *(f"{mean:.2f} / {draw:.2f}" for mean, draw in found)])
    header = ("layer", *(f"density {density:g}" for density in DENSITIES))
    title = "Sparse layers: times faster than dense, mean / draw."
    return square(options.device, options.dtype).rate, [Table(title, header, rows)]


if __name__ == "__main__":
    main("sparse_inference", __doc__, measure)
