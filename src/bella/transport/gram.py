"""Inner products between particles, and forces on them, from small Gram matrices.

Pure functions of stacked factors. A leading layer axis fuses layers of one shape into one batched
product. No matrix of the layer's own size (out x in) is ever formed: everything costs
O(n² r² (in + out)) a layer.

With Δ_i = s B_i A_i the inner product is ⟨Δ_i, Δ_j⟩ = s² Σ (B_iᵀ B_j) ∘ (A_i A_jᵀ). (Appendix G of
the Bella paper repeats the index i in one of its traces; this is the corrected form.)

Distances between near particles are small differences of large inner products. Where float32 would
lose them, products of factors are accumulated in float64 (taking a mean away from the factors would
help in one gauge only); whole copies, which are too large for that, are taken as they differ from
the first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

ULPS = 8
"""Units of rounding, of the particles' own size, up to which their distance is rounding: they are
one point. (Never below 1e-7 of that size, where sums in float64 cancel.)"""


NEAR = 1e-2
"""Square distance, relative to what was summed up for it, below which float32 has fewer than four
digits of it."""


def exact(x: Tensor) -> Tensor:
    """In float64, where products of float32 do not round; on the CPU if the device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


Stacked = tuple[Tensor, Tensor]
"""Factors A (layers, particles, rank, in) and B (layers, particles, out, rank)."""


def _are_all(rows: Tensor) -> Tensor:
    return rows


def _rows(
    A: Float[Tensor, "layers own rank in"],
    B: Float[Tensor, "layers own out rank"],
    others: Stacked | None,
) -> tuple[Stacked, Stacked]:
    """A and Bᵀ of the particles that are held here, and of all. Bᵀ is laid out once, since every
    product over it would copy it."""
    own = A, B.mT.contiguous()
    if others is None or (others[0] is A and others[1] is B):
        return own, own
    return own, (others[0], others[1].mT.contiguous())


def _blocks(
    X: Float[Tensor, "layers own rank dim"], Y: Float[Tensor, "layers particles rank dim"]
) -> Float[Tensor, "layers own rank particles rank"]:
    """All products X_i Y_jᵀ."""
    layers, own, rank, dim = X.shape
    flat = torch.bmm(X.reshape(layers, own * rank, dim), Y.reshape(layers, -1, dim).mT)
    return flat.reshape(layers, own, rank, -1, rank)


def inner_low_rank(
    A: Float[Tensor, "layers own rank in"],
    B: Float[Tensor, "layers own out rank"],
    scale: float,
    others: Stacked | None = None,
) -> Float[Tensor, "layers own particles"]:
    """⟨Δ_i, Δ_j⟩ of every pair of particles, per layer, in float64."""
    if others is not None:
        others = exact(others[0]), exact(others[1])
    (A, Bt), (all_A, all_Bt) = _rows(exact(A), exact(B), others)
    return scale**2 * (_blocks(A, all_A) * _blocks(Bt, all_Bt)).sum((2, 4))


def square_distances_low_rank(
    A: Float[Tensor, "layers own rank in"],
    B: Float[Tensor, "layers own out rank"],
    scale: float,
    others: Stacked | None = None,
    first: int = 0,
    whole: Callable[[Tensor], Tensor] = _are_all,
) -> tuple[
    Float[Tensor, "layers particles particles"],
    Float[Tensor, "layers particles"],
]:
    """‖Δ_i - Δ_j‖² of every pair of particles and ‖Δ_i‖² of each, per layer.

    In float64 where any two particles of these layers are so near, or the factors cancel so much
    in their gauge, that the sums of float32 would lose the distance.

    Args:
        A: of the particles that are held here.
        B: of the same.
        scale: s.
        others: factors of all particles, where these are some of them.
        first: the number of the first of these.
        whole: makes the rows of all particles of the rows of these.
    """
    (_, Bt), (all_A, all_Bt) = _rows(A, B, others)
    products = _blocks(A, all_A) * _blocks(Bt, all_Bt)
    inner = whole(scale**2 * products.sum((2, 4)))
    d2 = square_distances(inner)
    if A.dtype != torch.float64 and all_A.shape[1] > 1:
        own = whole(products.diagonal(first, dim1=1, dim2=3).abs().sum((1, 2)) * scale**2)
        summed = own.unsqueeze(-1) + own.unsqueeze(-2)
        near = d2 < NEAR * summed
        near.diagonal(dim1=-2, dim2=-1).zero_()
        if bool(near.any()):
            inner = whole(inner_low_rank(A, B, scale, others))
            d2 = square_distances(inner)
    return d2, inner.diagonal(dim1=-2, dim2=-1)


def pull_low_rank(
    A: Float[Tensor, "layers own rank in"],
    B: Float[Tensor, "layers own out rank"],
    scale: float,
    M: Float[Tensor, "layers own particles"],
    others: Stacked | None = None,
) -> tuple[Float[Tensor, "layers own rank in"], Float[Tensor, "layers own out rank"]]:
    """The weight-space force Σ_j M_ij Δ_j on particle i, pulled back to its factors.

    The chain rule through W_i = W0 + s B_i A_i gives, in particle i's own gauge,

        for A_i:  s² Σ_j M_ij (B_iᵀ B_j) A_j          for B_i:  s² Σ_j M_ij B_j (A_j A_iᵀ)

    Args:
        A: of the particles that are held here.
        B: of the same.
        scale: s.
        M: their rows.
        others: factors of all particles j, where these are some of them.

    Returns:
        The forces on A and on B.
    """
    layers, own, rank, _ = A.shape
    (_, Bt), (all_A, all_Bt) = _rows(A, B, others)
    weights = M[:, :, None, :, None] * scale**2
    on_A = (weights * _blocks(Bt, all_Bt)).reshape(layers, own * rank, -1)
    on_B = (weights * _blocks(A, all_A)).reshape(layers, own * rank, -1)
    force_A = torch.bmm(on_A, all_A.reshape(layers, on_A.shape[-1], -1)).view_as(A)
    force_B = torch.bmm(on_B, all_Bt.reshape(layers, on_B.shape[-1], -1)).view_as(Bt).mT
    return force_A, force_B


def inner_dense(
    value: Float[Tensor, "layers own size"],
    others: Float[Tensor, "layers particles size"] | None = None,
) -> Float[Tensor, "layers own particles"]:
    """⟨θ_i, θ_j⟩ of every pair of whole copies, or of some and all."""
    return torch.bmm(value, (value if others is None else others).mT)


def from_first(
    value: Float[Tensor, "layers particles size"],
) -> Float[Tensor, "layers particles size"]:
    """As the copies differ from the first: distances stay, and what all share is taken away. Equal
    ones are exactly 0."""
    return value - value[:, :1]


def pull_dense(
    value: Float[Tensor, "layers particles size"], M: Float[Tensor, "layers own particles"]
) -> Float[Tensor, "layers own size"]:
    """The force Σ_j M_ij θ_j on particle i."""
    return torch.bmm(M, value)


def square_distances(
    inner: Float[Tensor, "layers particles particles"],
) -> Float[Tensor, "layers particles particles"]:
    """‖i - j‖² = ⟨i, i⟩ + ⟨j, j⟩ - 2 ⟨i, j⟩, clamped at 0 where rounding would go below."""
    norms = inner.diagonal(dim1=-2, dim2=-1)
    d2 = (norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * inner).clamp_min(0)
    d2.diagonal(dim1=-2, dim2=-1).zero_()
    return d2


def resolved(
    d2: Float[Tensor, "layers particles particles"],
    size: Float[Tensor, "layers 1 1"],
    dtype: torch.dtype,
) -> Float[Tensor, "layers particles particles"]:
    """The square distances, exactly 0 where they are no more than rounding; what is not finite
    stays so, and is no distance of 0.

    Args:
        d2: square distances.
        size: squares of the particles' own sizes.
        dtype: what the particles are held in; float32 for less.
    """
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    # NaN is not below, and infinity is not below infinity: both stay.
    return d2.masked_fill(d2 < max((ULPS * eps) ** 2, 1e-14) * size, 0)


def differences(weights: Float[Tensor, "*layers n n"]) -> Float[Tensor, "*layers n n"]:
    """The matrix M with Σ_j M_ij Δ_j = Σ_j weights_ij (Δ_i - Δ_j)."""
    # The diagonal multiplies zero; where a kernel is steep there it would only add rounding.
    weights = weights - torch.diag_embed(weights.diagonal(dim1=-2, dim2=-1))
    return torch.diag_embed(weights.sum(-1)) - weights
