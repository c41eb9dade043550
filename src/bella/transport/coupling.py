"""How close particles are: kernel matrices over the sites of a posterior, fused by shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bella.errors import BellaError
from bella.parallel.ranks import ALONE, Ranks
from bella.particles.layer import Factors, Site
from bella.transport import gram
from bella.transport.kernels import bandwidth, kernel_named, median

Scope = Literal["global", "layer"]
Matrices = Float[Tensor, "layers particles particles"]


def wide(x: Tensor) -> Tensor:
    """In float32 or better: small distances drown in bfloat16."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


class Group:
    """Sites of one kind and shape, handled as one batch.

    What couples particles asks here, and only here, for those that other processes hold: every
    matrix over pairs is whole in each of them, forces are of a process's own particles.

    Args:
        sites: at least one, all of the same kind, shape and scale.
        ranks: processes that hold the particles between them.
        particles: how many these are together; ``None`` for those of the sites.
    """

    def __init__(self, sites: Sequence[Site], ranks: Ranks = ALONE, particles: int | None = None):
        self.sites = list(sites)
        first = sites[0]
        self.ranks = ranks
        self.particles = len(first.parameters[0]) if particles is None else particles
        self.own = ranks.part(self.particles)
        self.low_rank = isinstance(first, Factors)
        self.scale = first.scale if isinstance(first, Factors) else 1.0
        self.in_kernel = True if isinstance(first, Factors) else first.in_kernel

    def stacked(self) -> list[Tensor]:
        """The sites' parameters, each kind stacked to (layers, particles, ...)."""
        columns = zip(*(site.parameters for site in self.sites), strict=True)
        stacked = [
            wide(column[0]).unsqueeze(0)  # a view: whole copies are large
            if len(column) == 1
            else torch.stack([wide(p) for p in column])
            for column in columns
        ]
        return stacked if self.low_rank else [x.flatten(2) for x in stacked]

    def whole(self, rows: Tensor) -> Tensor:
        """(layers, own particles, ...) of this process -> (layers, particles, ...) of all."""
        return self.ranks.gather(rows, self.particles, axis=1)

    def square_distances(self) -> Matrices:
        """‖Δ_i - Δ_j‖² per layer, as `wide` as the parameters."""
        first = self.sites[0].parameters[0]
        if self.low_rank:
            A, B = self.stacked()
            others = self.whole(A), self.whole(B)
            d2, norms = gram.square_distances_low_rank(
                A, B, self.scale, others, self.own.start, self.whole
            )
            size = norms.mean(-1)
        else:
            values = self.whole(self.stacked()[0])
            apart = gram.from_first(values)
            inner = gram.inner_dense(apart[:, self.own.start : self.own.stop], apart)
            d2 = gram.square_distances(self.whole(inner))
            size = values[:, 0].square().sum(-1)
        d2 = gram.resolved(d2, size[:, None, None], first.dtype)
        return d2.to(torch.promote_types(first.dtype, torch.float32)).to(first.device)

    def pull(self, M: Matrices) -> list[Tensor]:
        """The force Σ_j M_ij Δ_j on every parameter, stacked as `stacked` is."""
        M = M[:, self.own.start : self.own.stop]
        if self.low_rank:
            A, B = self.stacked()
            others = self.whole(A), self.whole(B)
            return list(gram.pull_low_rank(A, B, self.scale, M, others))
        return [gram.pull_dense(self.whole(self.stacked()[0]), M)]

    def add_to_grad(self, forces: Sequence[Tensor], weight: float = 1.0) -> None:
        """Add forces, stacked as `stacked` is, to the sites' gradients."""
        for column, force in enumerate(forces):
            for row, site in enumerate(self.sites):
                add_to_grad(site.parameters[column], force[row], weight)


def add_to_grad(parameter: torch.nn.Parameter, force: Tensor, weight: float = 1.0) -> None:
    """Add to ``parameter.grad``, which may not exist yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(force.reshape(parameter.shape).to(parameter.grad.dtype), alpha=weight)


LARGEST = 2**30
"""Bytes of all particles' factors that a process gathers at a time."""
PIECE = 2**23
"""Bytes of parameters that are one batch otherwise: stacks, products and forces are copies of that
size. Larger ones are slower, too: of a hundred particles layers one by one take .95 of five at
once."""


def groups_of(
    sites: Sequence[Site], ranks: Ranks = ALONE, particles: int | None = None
) -> list[Group]:
    """Sites fused by kind and shape; see `Group`."""
    fused: dict[tuple, list[Site]] = defaultdict(list)
    for site in sites:
        shapes = tuple(p.shape for p in site.parameters)
        kind = site.scale if isinstance(site, Factors) else site.in_kernel
        fused[(type(site), shapes, kind, site.parameters[0].device)].append(site)
    groups = []
    for members in fused.values():
        size = sum(p.nbytes for p in members[0].parameters)
        # What is gathered lies in memory as a whole, and each piece of it is a message.
        most = max(1, PIECE // size if ranks.size == 1 else LARGEST // (size * ranks.size))
        groups += [
            Group(members[i : i + most], ranks, particles) for i in range(0, len(members), most)
        ]
    return groups


@torch.no_grad()
def distances(groups: Sequence[Group]) -> Float[Tensor, "particles particles"]:
    """Distances of two particles, over all layers together; of no layer none."""
    moving = [group.square_distances().sum(0) for group in groups if group.in_kernel]
    return torch.stack(moving).sum(0).sqrt() if moving else torch.zeros(0, 0)


@torch.no_grad()
def mean_distance(groups: Sequence[Group]) -> Tensor:
    """Root of the mean square distance of two particles, over all layers together."""
    found = distances(groups)
    n = len(found)
    return (found.square().sum() / max(n * (n - 1), 1)).sqrt()


@torch.no_grad()
def where_not_finite(groups: Sequence[Group]) -> tuple[str, list[int]] | None:
    """The first layer in which distances are NaN or infinite, and the particles at fault: those
    that are in most of such pairs."""
    for group in groups:
        if not group.in_kernel:
            continue
        wrong = (~torch.isfinite(group.square_distances())).sum(-1)
        for site, count in zip(group.sites, wrong, strict=True):
            if count.any():
                return site.name, (count == count.max()).nonzero().flatten().tolist()
    return None


@dataclass(frozen=True)
class Measurement:
    """Kernel matrices, one entry for each group.

    Attributes:
        k: k_ij per layer; groups that only follow hold the kernel of the others.
        slope: -2 ∂k/∂‖Δ_i - Δ_j‖² per layer; zero for groups that only follow, and for pairs that
            are one point in that layer.
        distance: mean over pairs of the square distance over all layers.
        width: mean bandwidth σ².
        mean_k: mean of k_ij over pairs i ≠ j.
    """

    k: list[Matrices]
    slope: list[Matrices]
    distance: Tensor
    width: Tensor
    mean_k: Tensor


class Coupling:
    """Measures kernels between particles.

    Args:
        groups: what the particles own.
        kernel: ``rbf``, ``imq`` or ``laplace``.
        rule: bandwidth, see `bella.transport.kernels.bandwidth`.
        scope: one kernel on the mean of all layers' square distances, or one for each.
        normalize: with one kernel over all layers, divide each layer's square distances by their
            median first; otherwise one layer of large scale rules the mean.
        floor: smallest median or bandwidth.

    Raises:
        BellaError: unknown kernel or scope.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        kernel: str = "rbf",
        rule: str | float = "median",
        scope: Scope = "global",
        normalize: bool = True,
        floor: float = 1e-12,
    ):
        if scope not in ("global", "layer"):
            raise BellaError(f"scope={scope!r}: choose 'global' or 'layer'.")
        self.groups = groups
        self.kernel = kernel_named(kernel)
        self.rule = rule
        self.scope = scope
        self.normalize = normalize
        self.floor = floor

    @torch.no_grad()
    def measure(self) -> Measurement:
        """Kernel matrices of the parameters as they are now.

        Raises:
            BellaError: everything that distances count is frozen.
        """
        moving = [group for group in self.groups if group.in_kernel]
        if not moving:
            raise BellaError(
                "Every weight in which the particles differ is frozen: let some of them train "
                "(requires_grad), or choose transport 'ensemble'."
            )
        # All layers' pairs in one (layers, n, n); the groups take their rows back at the end.
        d2 = torch.cat([group.square_distances() for group in moving])
        share = torch.ones_like(d2[:, :1, :1])
        if self.scope == "global":
            if self.normalize:
                share = median(d2).clamp_min(self.floor).reciprocal()
            share = share / len(d2)
            total = (d2 * share).sum(0, keepdim=True)
        else:
            total = d2
        width = bandwidth(total, self.rule, self.floor)
        k, slope = self.kernel(total, width)
        # Where two particles are one point in a layer, no direction there parts them.
        k, slope = k.expand_as(d2), (slope * share).where(d2 > 0, 0)
        n = d2.shape[-1]
        pairs = max(n * (n - 1), 1)
        rows_k, rows_slope = (
            iter(x.split([len(group.sites) for group in moving])) for x in (k, slope)
        )
        mean = k.mean(0)
        return Measurement(
            k=[
                next(rows_k) if group.in_kernel else mean.expand(len(group.sites), n, n)
                for group in self.groups
            ],
            slope=[
                next(rows_slope) if group.in_kernel else mean.new_zeros(len(group.sites), n, n)
                for group in self.groups
            ],
            distance=d2.sum() / pairs,
            width=width.mean(),
            mean_k=(mean.sum() - mean.diagonal().sum()) / pairs,
        )
