"""What particles say of numbers: a mixture of Gaussians, one a particle.

p(y | x) = mean_i N(y; μ_i(x), σ_i²(x))
variance            mean_i σ_i² (aleatoric) + variance of the μ_i (epistemic)
mutual information  H[p] - mean_i H[N_i] >= 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bella import metrics
from bella.errors import BellaError
from bella.metrics import regression
from bella.prediction.said import Said


@dataclass(frozen=True, eq=False)
class GaussianPredictive(Said):
    """The predictive of one number an example, (batch,), or of several, (batch, numbers).

    Each number is a position: several are said of one by one, their correlation is not.

    Attributes:
        logits: mean and log variance of each particle, (particles, batch, ..., 2).
        average: ``probs``: the mixture is the mean of densities; nothing else is defined.

    Raises:
        BellaError: another ``average``, or values that are not finite.
    """

    likelihood: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average != "probs":
            raise BellaError(
                f"average={self.average!r} is for classes: numbers have the mean of densities."
            )

    @property
    def particle_means(self) -> Float[Tensor, particles * batch]:
        """μ_i."""
        return self.logits[..., 0]

    @property
    def particle_variances(self) -> Float[Tensor, particles * batch]:
        """σ_i²."""
        return self.logits[..., 1].exp()

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[y | x]."""
        return metrics.over_particles(self.particle_means, self.weights)

    @property
    def predictions(self) -> Float[Tensor, "*batch"]:
        """The mean: what errs least in the square."""
        return self.mean

    @property
    def aleatoric(self) -> Float[Tensor, "*batch"]:
        """mean_i σ_i²: the variance that every particle sees."""
        return metrics.over_particles(self.particle_variances, self.weights)

    @property
    def epistemic(self) -> Float[Tensor, "*batch"]:
        """The variance of the particles' means: what they dispute."""
        apart = (self.particle_means - self.mean).square()
        return metrics.over_particles(apart, self.weights)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var[y | x]."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> Float[Tensor, "*batch"]:
        """Its root, in the units of y."""
        return self.variance.sqrt()

    def log_prob(self, y: Float[Tensor, "*#batch"]) -> Float[Tensor, ...]:
        """log p(y | x), by log-mean-exp."""
        return regression.log_density(y, *self._parts)

    def cdf(self, y: Float[Tensor, "*#batch"]) -> Float[Tensor, ...]:
        """P(Y <= y | x)."""
        return regression.cdf(y, *self._parts)

    def quantile(self, level: float) -> Float[Tensor, "*batch"]:
        """The y with P(Y <= y | x) = level.

        Raises:
            BellaError: the level is not between 0 and 1.
        """
        return regression.quantile(level, *self._parts)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The bounds of the central interval that holds so much of the probability.

        Raises:
            BellaError: the level is not between 0 and 1.
        """
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    @cached_property
    def expected_entropy(self) -> Float[Tensor, "*batch"]:
        """mean_i H[N_i], in nats; of a density, so it may be negative."""
        each = 0.5 * (math.log(2 * math.pi * math.e) + self.logits[..., 1])
        return metrics.over_particles(each, self.weights)

    @cached_property
    def mutual_information(self) -> Float[Tensor, "*batch"]:
        """mean_i KL(N_i || p) >= 0, in nats, by Gauss-Hermite quadrature."""
        return regression.mutual_information(*self._parts)

    @cached_property
    def entropy(self) -> Float[Tensor, "*batch"]:
        """H[p], in nats; of a density, so it may be negative and depends on the units of y."""
        return self.expected_entropy + self.mutual_information

    def nll(self, labels: Tensor) -> float:
        """Mean negative log-density of the numbers that count, in nats.

        Raises:
            BellaError: labels of another shape or type, or none that counts.
        """
        counted, y = self.counted(labels)
        regression.check(counted.mean, y)
        return -counted.log_prob(y).double().mean().item()

    def at_temperature(self, temperature: float) -> Tensor:
        """N(y; μ, σ²) to the power 1 / T is N(y; μ, T σ²), up to a factor."""
        return self._rescaled(0.0, 1.0, math.log(temperature))

    def scaled(self, mean: float, std: float) -> Self:
        """The predictive of ``mean + std * y``: back to the units that numbers were scaled from."""
        return replace(self, logits=self._rescaled(mean, std, 2 * math.log(std)))

    def _rescaled(self, shift: float, scale: float, log: float) -> Tensor:
        """Scores of shift + scale * mean and log variance + log."""
        return torch.stack((shift + scale * self.logits[..., 0], log + self.logits[..., 1]), -1)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, metrics.Weights]:
        return self.particle_means, self.particle_variances, self.weights
