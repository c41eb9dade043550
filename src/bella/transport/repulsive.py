"""`repulsive`: own gradient, and repulsion from the density of all particles.

    descend ∇ℓ_i + prior - (T/N) R(i),      R = -∇ log Σ_j k_ij, taken in i's first place:
    R(i) = Σ_j c_ij (Δ_i - Δ_j),            c_ij = slope_ij / Σ_j k_ij   (rbf: k_ij / (σ² Σ_j k_ij))

pulled back to the factors,

    R_B(i) = s² Σ_j c_ij [B_i (A_i A_iᵀ) - B_j (A_j A_iᵀ)]
    R_A(i) = s² Σ_j c_ij [(B_iᵀ B_i) A_i - (B_iᵀ B_j) A_j]

This is kernel-density Wasserstein gradient descent (D'Angelo & Fortuin 2021) in the space of Δ, and
Bella's Eq. 4 with its sign mended (as printed, particles attract) and its kernel sum normalised.
"""

from __future__ import annotations

from typing import ClassVar

from bella.transport.coupled import Coupled


class Repulsive(Coupled):
    """Own gradient and normalised repulsion: the default. See `Coupled` for the arguments."""

    name: ClassVar[str] = "repulsive"

    def couple(self, coefficient: float) -> None:
        """Add -(T/N) R, from particles as they are now."""
        if self.posterior.total == 1:
            return
        measured = self.coupling.measure()
        weights = [
            slope / k.sum(-1, keepdim=True)
            for slope, k in zip(measured.slope, measured.k, strict=True)
        ]
        self.repel(measured, weights, coefficient)
