"""Second moments Σ v vᵀ of many vectors, summed in one pass and given by their eigenvectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

Eigen = tuple[Float[Tensor, " k"], Float[Tensor, "size k"]]


class Moment(ABC):
    """A running sum; what it sums depends on nothing but the vectors (their order neither)."""

    @abstractmethod
    def add(self, rows: Float[Tensor, "count size"]) -> None:
        """Add the vectors."""

    @abstractmethod
    def eigen(self) -> Eigen:
        """Eigenvalues (not negative) and eigenvectors; what they leave out counts as 0."""


class FullMoment(Moment):
    """The whole matrix, size²."""

    def __init__(self, like: Tensor, size: int):
        self.total = like.new_zeros(size, size)

    def add(self, rows: Tensor) -> None:
        """Σ += VᵀV."""
        self.total.addmm_(rows.mT, rows)

    def eigen(self) -> Eigen:
        """All of them."""
        values, vectors = torch.linalg.eigh(self.total.double())
        return values.clamp_min(0).to(self.total), vectors.to(self.total)


class SketchedMoment(Moment):
    """The leading eigenvectors alone, from the product Y = Σ Ω with a fixed random Ω.

    Y is linear in Σ, so it is summed as the whole matrix would be, in memory size x (2 rank + 10).
    Nyström's Y (ΩᵀY)⁺ Yᵀ, cut to the rank, is never above Σ, and is Σ where the rank suffices.

    Source:
        Tropp, Yurtsever, Udell & Cevher 2017, Fixed-rank approximation of a positive-semidefinite
        matrix from streaming data, Algorithm 3.
    """

    def __init__(self, like: Tensor, size: int, rank: int):
        self.rank = rank
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(size, min(size, 2 * rank + 10), generator=generator, dtype=torch.double)
        self.omega = torch.linalg.qr(draw).Q.to(like)
        self.product = torch.zeros_like(self.omega)

    def add(self, rows: Tensor) -> None:
        """Y += Vᵀ(VΩ)."""
        self.product.addmm_(rows.mT, rows @ self.omega)

    def eigen(self) -> Eigen:
        """As many as the rank."""
        product, omega = self.product.double(), self.omega.double()
        core = omega.mT @ product
        values, vectors = torch.linalg.eigh((core + core.mT) / 2)
        noise = 10 * len(values) * torch.finfo(self.product.dtype).eps * values[-1].clamp_min(0)
        inverse_root = torch.where(values > noise, values, torch.inf).rsqrt()
        left, singular, _ = torch.linalg.svd(product @ (vectors * inverse_root), False)
        return singular[: self.rank].square().to(self.omega), left[:, : self.rank].to(self.omega)
