"""Vectors that differ by component, and that are drawn anew for every example if they are random.

They are the factors of rank-1 Bayesian networks (Dusenberry et al. 2020): a Gaussian or a Cauchy
distribution of each element, around means near 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bella.particles.axis import ParticleAxis
from bella.posteriors.divergences import kl_cauchy, kl_gaussian

LIMIT = 10.0
"""Draws are clipped to [-LIMIT, LIMIT]; Cauchy's tails need it."""


class PointVector(nn.Module):
    """One vector for each component, without spread.

    Args:
        axis: the posterior's particle axis; its particles are the components.
        mean: (components, size), the start.
    """

    def __init__(self, axis: ParticleAxis, mean: Float[Tensor, "components size"]):
        super().__init__()
        self.axis = axis
        self.mean = nn.Parameter(mean)

    def forward(self) -> Float[Tensor, "width batch_or_1 size"]:
        """The vectors of the running components, for each example of the pass."""
        return self.axis.select(self.mean).unsqueeze(1)

    def kl(self) -> Float[Tensor, " components"]:
        """Divergence from the prior, in nats: 0 for a point."""
        return self.mean.new_zeros(len(self.mean))

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        components, size = self.mean.shape
        return f"components={components}, size={size}"


class RandomVector(PointVector):
    """Independent elements of location ``mean`` and scale softplus(``rho``).

    Args:
        axis: the posterior's particle axis.
        mean: (components, size), the start.
        rho: (components, size), the start.
        prior_mean: (components, size), or one number for all.
        prior_scale: of every element.
    """

    def __init__(
        self,
        axis: ParticleAxis,
        mean: Float[Tensor, "components size"],
        rho: Float[Tensor, "components size"],
        prior_mean: Tensor,
        prior_scale: float,
    ):
        super().__init__(axis, mean)
        self.rho = nn.Parameter(rho)
        self.prior_mean: Tensor
        self.register_buffer("prior_mean", prior_mean)
        self.prior_scale = prior_scale

    @property
    def scale(self) -> Tensor:
        """(components, size), positive."""
        return F.softplus(self.rho)

    def forward(self) -> Float[Tensor, "width batch size"]:
        """A draw for each example and running component, by reparameterisation."""
        axis = self.axis
        mean, scale = (axis.select(x).unsqueeze(1) for x in (self.mean, self.scale))
        noise = self.noise(mean.expand(-1, axis.batch, -1))
        return (mean + scale * noise).clamp(-LIMIT, LIMIT)

    @abstractmethod
    def noise(self, like: Tensor) -> Tensor:
        """Draws of location 0 and scale 1, in the shape of ``like``."""


class GaussianVector(RandomVector):
    """Elements N(mean, softplus(rho)²), prior N(prior_mean, prior_scale²)."""

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal."""
        return torch.randn_like(like)

    def kl(self) -> Float[Tensor, " components"]:
        """Divergence from the prior, in nats."""
        return kl_gaussian(self.mean, self.scale, self.prior_mean, self.prior_scale).sum(-1)


class CauchyVector(RandomVector):
    """Elements Cauchy(mean, softplus(rho)), prior Cauchy(prior_mean, prior_scale)."""

    def noise(self, like: Tensor) -> Tensor:
        """Standard Cauchy, by its quantile function."""
        return torch.tan(math.pi * (torch.rand_like(like) - 0.5))

    def kl(self) -> Float[Tensor, " components"]:
        """Divergence from the prior, in nats."""
        return kl_cauchy(self.mean, self.scale, self.prior_mean, self.prior_scale).sum(-1)


class Start:
    """Draws where vectors start.

    Each component has a generator of its own, so it starts the same whatever their number is. All
    is drawn on the CPU, so that one seed gives one start on every device.

    Args:
        components: number K of components.
        random_sign_init: from 0 to 1, the probability that an element of the mean starts at +1 and
            not at -1; negative, the mean starts as N(1, |random_sign_init|).
        dropout_rate: p of the starting scale √(p / (1 - p)), the spread of Gaussian dropout.
        seed: decides all.
    """

    RHO_STD: ClassVar[float] = 0.1

    def __init__(self, components: int, random_sign_init: float, dropout_rate: float, seed: int):
        self.generators = [
            torch.Generator().manual_seed((seed * 1_000_003 + k) % 2**63) for k in range(components)
        ]
        self.random_sign_init = random_sign_init
        scale = math.sqrt(dropout_rate / (1 - dropout_rate))
        self.rho = math.log(math.expm1(scale))  # softplus⁻¹

    def mean(self, size: int) -> Float[Tensor, "components size"]:
        """Starting means."""
        return torch.stack([self._mean(torch.empty(size), g) for g in self.generators])

    def rhos(self, size: int) -> Float[Tensor, "components size"]:
        """Starting rho: normal about softplus⁻¹ of the scale, truncated at two deviations."""
        std = self.RHO_STD
        low, high = self.rho - 2 * std, self.rho + 2 * std
        return torch.stack(
            [
                nn.init.trunc_normal_(torch.empty(size), self.rho, std, low, high, generator=g)
                for g in self.generators
            ]
        )

    def _mean(self, empty: Tensor, generator: torch.Generator) -> Tensor:
        if self.random_sign_init < 0:
            return empty.normal_(1.0, -self.random_sign_init, generator=generator)
        return 2 * empty.bernoulli_(self.random_sign_init, generator=generator) - 1
