"""A Gaussian over one weight matrix whose precision is a Kronecker product plus a multiple of I.

    W ~ N(W_MAP, (G ⊗ S + τ I)⁻¹),      G (out, out),   S (in, in)

G and S are held by eigenvectors; those that are left out have the eigenvalue 0, so that the prior
rules there (the low-rank form of Yang et al. 2024). Nothing of size (out in)² is formed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Outer(NamedTuple):
    """Jacobian of a map that each example uses at one position: J_c = g_c aᵀ, left unformed.

    Attributes:
        gradients: (classes, batch, out).
        inputs: (batch, in).
    """

    gradients: Tensor
    inputs: Tensor


Jacobian = Outer | Tensor
"""Each class's gradient with respect to W: formed as (classes, batch, out, in), or `Outer`."""


class KroneckerGaussian(nn.Module):
    """The Gaussian of one matrix, without its mean; as it is made, the curvature is 0.

    Args:
        shape: (out, in) of the matrix.
        ranks: numbers of eigenvectors that are held of G and of S.
        like: dtype and device.
    """

    in_values: Tensor
    in_vectors: Tensor
    out_values: Tensor
    out_vectors: Tensor

    def __init__(self, shape: tuple[int, int], ranks: tuple[int, int], like: Tensor):
        super().__init__()
        for side, size, rank in zip(("out", "in"), shape, ranks, strict=True):
            self.register_buffer(f"{side}_values", like.new_zeros(rank))
            self.register_buffer(f"{side}_vectors", like.new_zeros(size, rank))

    def set(
        self,
        outputs: tuple[Float[Tensor, " k_out"], Float[Tensor, "out k_out"]],
        inputs: tuple[Float[Tensor, " k_in"], Float[Tensor, "in k_in"]],
    ) -> None:
        """Take G and S, by their eigenvalues and eigenvectors."""
        # Contiguous, as a file holds them: a loaded posterior then draws the same to the bit.
        self.out_values, self.out_vectors = (x.contiguous() for x in outputs)
        self.in_values, self.in_vectors = (x.contiguous() for x in inputs)

    def eigenvalues(self) -> Float[Tensor, "k_out k_in"]:
        """Those of G ⊗ S that are held; all others are 0."""
        return torch.outer(self.out_values, self.in_values)

    def log_volume(self, prior_precision: Tensor) -> Tensor:
        """log det(G ⊗ S + τ I) - log det(τ I)."""
        return torch.log1p(self.eigenvalues() / prior_precision).sum()

    def whiten(
        self, matrix: Float[Tensor, "*batch out in"], prior_precision: float
    ) -> Float[Tensor, "*batch out in"]:
        """Σ^½ vec(matrix), Σ^½ the symmetric root of the covariance.

        Of white noise it makes a draw of W - W_MAP, and ⟨Σ^½ J, Σ^½ J'⟩ = J Σ J'ᵀ.
        """
        outside = prior_precision**-0.5
        gain = (self.eigenvalues() + prior_precision).rsqrt() - outside
        inner = self.out_vectors.mT @ matrix @ self.in_vectors
        return outside * matrix + self.out_vectors @ (gain * inner) @ self.in_vectors.mT

    def draw(self, prior_precision: float) -> Float[Tensor, "out in"]:
        """A sample of W - W_MAP."""
        shape = len(self.out_vectors), len(self.in_vectors)
        white = torch.randn(shape, dtype=self.in_values.dtype, device=self.in_values.device)
        return self.whiten(white, prior_precision)

    def covariance(
        self, jacobian: Jacobian, prior_precision: float
    ) -> Float[Tensor, "batch classes classes"]:
        """J Σ Jᵀ: what this matrix adds to the covariance of the logits."""
        if isinstance(jacobian, Tensor):
            root = self.whiten(jacobian, prior_precision).flatten(2)
            return torch.einsum("cbp,dbp->bcd", root, root)
        g, a = jacobian
        g_held, a_held = g @ self.out_vectors, a @ self.in_vectors
        # What the eigenvectors leave out is taken explicitly: as a difference of norms it would
        # lose all digits where the curvature is far above τ.
        g_rest, a_rest = g - g_held @ self.out_vectors.mT, a - a_held @ self.in_vectors.mT
        inside = a_held.square() @ (self.eigenvalues() + prior_precision).reciprocal().mT
        inside = inside + a_rest.square().sum(-1, keepdim=True) / prior_precision
        outside = a.square().sum(-1, keepdim=True) / prior_precision
        return torch.einsum("cbo,dbo->bcd", g_held * inside, g_held) + torch.einsum(
            "cbo,dbo->bcd", g_rest * outside, g_rest
        )
