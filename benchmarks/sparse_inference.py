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
from page import Options, Table, main
from timing import Until, paired, ratios, square, timed

DENSITIES = (0.2, 0.1, 0.05, 0.02)


@torch.no_grad()
def ratio(
    title: str, dense: Callable[[], Tensor], sparse: Callable[[], Tensor], until: Until
) -> float:
    """Median over rounds of the dense call's time over the sparse call's."""
    dense()
    repeats = range(max(1, round(0.01 / timed(dense))))
    calls = {"sparse": sparse, "dense": dense}
    several = {
        name: lambda call=call: [call() for _ in repeats]  # type: ignore[misc]
        for name, call in calls.items()
    }
    seconds = paired(title, several, until)
    return median(ratios(seconds["dense"], seconds["sparse"]))


def compare(
    title: str, make: Callable[[], nn.Module], x: Tensor, density: float, until: Until
) -> tuple[float, float]:
    """Ratios of one layer: of the mean weight's outputs, and of draws."""
    plain = make().to(x.device)

    def posterior_of(density: float) -> bella.Posterior:
        network = nn.Sequential(make())
        made = bella.sparse_subspace(network, density=density, dense_modules=())
        return made.to(x.device).eval()

    sparse, dense = posterior_of(density), posterior_of(1.0)
    draw = ratio(f"{title}, draw", lambda: dense(x), lambda: sparse(x), until)
    with sparse.at_mean():
        mean = ratio(f"{title}, mean", lambda: plain(x), lambda: sparse(x), until)
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
    until = options.until(2 * len(cases) * len(DENSITIES))
    rows = []
    for name, (make, x) in cases.items():
        found = [compare(name, make, x.to(options.device), d, until) for d in DENSITIES]
        rows.append([name, *(f"{mean:.2f} / {draw:.2f}" for mean, draw in found)])
    header = ("layer", *(f"density {density:g}" for density in DENSITIES))
    title = "Sparse layers: times faster than dense, mean / draw."
    return square(options.device, options.dtype).rate, [Table(title, header, rows)]


if __name__ == "__main__":
    main("sparse_inference", __doc__, measure)
