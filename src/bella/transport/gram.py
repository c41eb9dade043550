"""Inner products between particles, and forces on them, from small Gram matrices.

Pure functions of stacked factors. A leading layer axis fuses layers of one shape into one batched
product. No matrix of the layer's own size (out x in) is ever formed: everything costs
O(n² r² (in + out)) a layer.

With Δ_i = s B_i A_i the inner product is ⟨Δ_i, Δ_j⟩ = s² Σ (B_iᵀ B_j) ∘ (A_i A_jᵀ). (Appendix G of
the Bella paper repeats the index i in one of its traces; this is the corrected form.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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
    """⟨Δ_i, Δ_j⟩ of every pair of particles, per layer."""
    return scale**2 * (_blocks(A) * _blocks(B.mT)).sum((2, 4))


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


def differences(weights: Float[Tensor, "*layers n n"]) -> Float[Tensor, "*layers n n"]:
    """The matrix M with Σ_j M_ij Δ_j = Σ_j weights_ij (Δ_i - Δ_j)."""
    # The diagonal multiplies zero; where a kernel is steep there it would only add rounding.
    weights = weights - torch.diag_embed(weights.diagonal(dim1=-2, dim2=-1))
    return torch.diag_embed(weights.sum(-1)) - weights
