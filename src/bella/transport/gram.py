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


def _blocks(
    X: Float[Tensor, "layers particles rank dim"],
) -> Float[Tensor, "layers particles rank particles rank"]:
    """All products X_i X_jᵀ."""
    layers, n, rank, dim = X.shape
    flat = X.reshape(layers, n * rank, dim)
    return torch.bmm(flat, flat.mT).reshape(layers, n, rank, n, rank)


def inner_low_rank(
    A: Float[Tensor, "layers particles rank in"],
    B: Float[Tensor, "layers particles out rank"],
    scale: float,
) -> Float[Tensor, "layers particles particles"]:
    """⟨Δ_i, Δ_j⟩ of every pair of particles, per layer, in float64."""
    return scale**2 * (_blocks(exact(A)) * _blocks(exact(B).mT)).sum((2, 4))


def square_distances_low_rank(
    A: Float[Tensor, "layers particles rank in"],
    B: Float[Tensor, "layers particles out rank"],
    scale: float,
) -> tuple[
    Float[Tensor, "layers particles particles"],
    Float[Tensor, "layers particles"],
]:
    """‖Δ_i - Δ_j‖² of every pair of particles and ‖Δ_i‖² of each, per layer.

    In float64 where any two particles of these layers are so near, or the factors cancel so much
    in their gauge, that the sums of float32 would lose the distance.
    """
    products = _blocks(A) * _blocks(B.mT)
    inner = scale**2 * products.sum((2, 4))
    d2 = square_distances(inner)
    if A.dtype != torch.float64 and A.shape[1] > 1:
        own = products.diagonal(dim1=1, dim2=3).abs().sum((1, 2)) * scale**2
        summed = own.unsqueeze(-1) + own.unsqueeze(-2)
        near = d2 < NEAR * summed
        near.diagonal(dim1=-2, dim2=-1).zero_()
        if bool(near.any()):
            inner = inner_low_rank(A, B, scale)
            d2 = square_distances(inner)
    return d2, inner.diagonal(dim1=-2, dim2=-1)


def pull_low_rank(
    A: Float[Tensor, "layers particles rank in"],
    B: Float[Tensor, "layers particles out rank"],
    scale: float,
    M: Float[Tensor, "layers particles particles"],
) -> tuple[Float[Tensor, "layers particles rank in"], Float[Tensor, "layers particles out rank"]]:
    """The weight-space force Σ_j M_ij Δ_j on particle i, pulled back to its factors.

    The chain rule through W_i = W0 + s B_i A_i gives, in particle i's own gauge,

        for A_i:  s² Σ_j M_ij (B_iᵀ B_j) A_j          for B_i:  s² Σ_j M_ij B_j (A_j A_iᵀ)

    Returns:
        The forces on A and on B.
    """
    layers, n, rank, _ = A.shape
    weights = M[:, :, None, :, None] * scale**2
    on_A = (weights * _blocks(B.mT)).reshape(layers, n * rank, n * rank)
    on_B = (weights * _blocks(A)).reshape(layers, n * rank, n * rank)
    force_A = torch.bmm(on_A, A.reshape(layers, n * rank, -1)).view_as(A)
    force_B = torch.bmm(on_B, B.mT.reshape(layers, n * rank, -1)).view_as(B.mT).mT
    return force_A, force_B


def inner_dense(
    value: Float[Tensor, "layers particles size"],
) -> Float[Tensor, "layers particles particles"]:
    """⟨θ_i, θ_j⟩ of every pair of whole copies."""
    return torch.bmm(value, value.mT)


def from_first(
    value: Float[Tensor, "layers particles size"],
) -> Float[Tensor, "layers particles size"]:
    """As the copies differ from the first: distances stay, and what all share is taken away. Equal
    ones are exactly 0."""
    return value - value[:, :1]


def pull_dense(
    value: Float[Tensor, "layers particles size"], M: Float[Tensor, "layers particles particles"]
) -> Float[Tensor, "layers particles size"]:
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
    """The square distances, exactly 0 where they are no more than rounding.

    Args:
        d2: square distances.
        size: squares of the particles' own sizes.
        dtype: what the particles are held in; float32 for less.
    """
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return d2.where(d2 > max((ULPS * eps) ** 2, 1e-14) * size, 0)


def differences(weights: Float[Tensor, "*layers n n"]) -> Float[Tensor, "*layers n n"]:
    """The matrix M with Σ_j M_ij Δ_j = Σ_j weights_ij (Δ_i - Δ_j)."""
    # The diagonal multiplies zero; where a kernel is steep there it would only add rounding.
    weights = weights - torch.diag_embed(weights.diagonal(dim1=-2, dim2=-1))
    return torch.diag_embed(weights.sum(-1)) - weights
