"""Particles that are one point: a seeded spread gives their repulsion a direction.

Whole copies of one network, and heads copied from one head, start as one point. On shared batches
without dropout they also get the same gradient, so they would stay one point for ever: the force
Σ_j c_ij (Δ_i - Δ_j) between them is 0 whatever its strength. Where that is so, each of them gets
noise of its own on its gradient, once, as large as the gradient; any optimiser then parts them by
steps of its own size, and from the next step on the repulsion has a direction.

Low-rank particles start with the same Δ = 0 too, but with different A: their gradients part them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from bella.transport import gram
from bella.transport.coupling import Group, wide

SAME_PLACE = 1e-5
SAME_GRADIENT = 1e-3
"""Distances, relative to the particles' own sizes, below which only rounding is between them."""


class Spread:
    """Parts particles that are one point and would stay one.

    Args:
        groups: what the particles own.
        seed: decides the noise; drawn on the CPU, so that every device has the same.

    Attributes:
        parted: whether no two particles were one point when last looked; it is not looked again.
        steps: how many steps needed the spread.
    """

    def __init__(self, groups: Sequence[Group], seed: int = 0):
        self.groups = groups
        self.seed = seed
        self.parted = False
        self.steps = 0

    @torch.no_grad()
    def part(self) -> None:
        """Add the noise to the gradients of particles that are one point, if there are any."""
        if self.parted:
            return
        found = stuck(self.groups)
        self.parted = not bool(found.any())
        if self.parted:
            return
        generator = torch.Generator().manual_seed(self.seed)
        first = self.groups[0]
        own = slice(first.own.start, first.own.stop)
        for site in (site for group in self.groups if group.in_kernel for site in group.sites):
            for parameter in site.parameters:
                if parameter.grad is None:
                    continue
                grad = wide(parameter.grad)
                size = grad.flatten(1).square().mean(1).sqrt() * found[own].to(grad.device)
                shape = (first.particles, *grad.shape[1:])  # of all, in whatever process they are
                noise = torch.randn(shape, generator=generator)[own].to(grad)
                noise *= size.view(-1, *[1] * (grad.dim() - 1))
                parameter.grad.add_(noise.to(parameter.grad.dtype))
        self.steps += 1
        if self.steps == 1:
            warnings.warn(
                f"{int(found.sum())} of {len(found)} particles are one point and have the same "
                "gradient, so their repulsion has no direction: seeded noise as large as the "
                "gradient parts them in this step. Starts of their own (start_std, reset) make "
                "this unnecessary.",
                stacklevel=5,
            )


def stuck(groups: Sequence[Group]) -> Tensor:
    """The particles (particles,) that have the place and the gradient of another one; on the CPU.

    None is where all gradients are 0: no noise of their size would part them.
    """
    ranks, n = groups[0].ranks, groups[0].particles
    sites = [site for group in groups for site in group.sites]
    parameters = [p for site in sites for p in site.parameters]
    same = ~torch.eye(n, dtype=torch.bool)
    for parameter in parameters:
        same &= near(ranks.gather(parameter, n), SAME_PLACE)
        if not same.any():
            break
    else:
        gradients = [ranks.gather(p.grad, n) for p in parameters if p.grad is not None]
        if not any(bool(grad.any()) for grad in gradients):
            same[:] = False
        for grad in gradients:
            same &= near(grad, SAME_GRADIENT)
    return same.any(1)


def near(values: Tensor, share: float) -> Tensor:
    """Which rows (n, ...) are apart by at most a share of their size: (n, n), on the CPU."""
    flat = wide(values).flatten(1).unsqueeze(0)
    d2 = gram.square_distances(gram.inner_dense(gram.from_first(flat)))[0]
    norms = flat[0].square().sum(1)
    return (d2 <= share**2 * torch.minimum(norms[:, None], norms)).cpu()
