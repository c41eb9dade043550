"""What every transport does: add to the gradients what ties n particles into one posterior.

    loss = bella.nll(posterior(x), y)
    loss.backward(); move.step(); optimizer.step()

The loss is the mean negative log-likelihood ℓ of the batch, summed over particles. A transport adds
the prior and the coupling, both divided by the number of training data N, so that one optimiser
step descends ∇ℓ_i + (1/N) ∇(-log prior) - (T/N) R(i). T is the posterior's temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from bella.errors import BellaError
from bella.likelihood import Likelihood
from bella.particles.layer import Factors
from bella.posterior import Posterior
from bella.transport.coupling import (
    Group,
    add_to_grad,
    distances,
    groups_of,
    mean_distance,
    wide,
)

Prior = Literal["uniform", "factors", "delta"]


class Mover(Protocol):
    """What changes particles between ``backward`` and the optimiser: a transport, or what moves a
    posterior's parts where no gradient leads (the active set of a sparse one).

        mover.follow(optimizer)
        ...
        loss.backward()
        if not mover.step():
            optimizer.step()
    """

    def follow(self, optimizer: Optimizer) -> None:
        """Told once which optimiser steps, for a mover that moves its state along."""

    def step(self, learning_rate: float | None = None) -> bool:
        """Change gradients, or parameters; called after each step's last backward pass.

        Args:
            learning_rate: of the coming optimiser step.

        Returns:
            Whether this stands for the optimiser's step, which is then left out.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the posterior's and the optimiser's tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the tensors of that moment in place."""


class Transport:
    """Base of all transports; by itself it adds prior, noise and scaling, and no coupling.

    Args:
        posterior: whose particles move. What is frozen now, a head with ``requires_grad`` off say,
            stays as it is.
        data_size: number of training data N.
        temperature: T of the posterior p(θ | D)^(1/T); 1 is Bayes'. 0 turns the coupling off.
        gamma: the paper's γ instead of a temperature: T = γ N / n.
        prior: ``uniform`` (improper; the paper's), ``factors``: N(0, τ²) on the elements of A and
            B, or ``delta``: N(0, τ²) on the elements of the change Δ; heads have N(0, τ²) with
            both. Do not add an optimiser's weight decay to it: that is a prior on factors as well.
        prior_std: τ.
        warmup: steps over which coupling rises from 0 to its strength. At the usual start (B = 0)
            all particles are one point, and repulsion is undirected there.
        langevin: add the noise that makes the moves Langevin dynamics at temperature T (with plain
            SGD; an adaptive optimiser rescales it). `step` then needs the learning rate.
        damping: precondition the factors' gradients, ∇A ← (BᵀB + δI)⁻¹∇A and ∇B ← ∇B (AAᵀ + δI)⁻¹,
            with this δ: the path of Δ then does not depend on the gauge (B G, G⁻¹ A) (Zhang &
            Pilanci 2024). ``None`` leaves them.

    Attributes:
        loss_scale: set it to the gradient scaler's scale when fp16 losses are scaled.
        accumulate: how many batches like this one make one step: its loss is divided by this
            number before it goes backward. `function` needs it, whose force enters in every
            backward pass. Where batches differ in how many labels count it is all labels of the
            step over this batch's.

    Raises:
        BellaError: arguments out of range.
    """

    name: ClassVar[str] = ""
    separates: ClassVar[bool] = True
    """Whether particles may go backward one after another at no further cost."""

    def __init__(
        self,
        posterior: Posterior,
        *,
        data_size: int,
        temperature: float = 1.0,
        gamma: float | None = None,
        prior: Prior = "uniform",
        prior_std: float = 1.0,
        warmup: int = 0,
        langevin: bool = False,
        damping: float | None = None,
    ):
        numbers = {
            "temperature": temperature,
            "gamma": gamma,
            "prior_std": prior_std,
            "warmup": warmup,
            "damping": damping,
        }
        for name, value in numbers.items():
            no_number = isinstance(value, bool) or not hasattr(type(value), "__float__")
            if value is not None and no_number:  # '1' in YAML is a text
                raise BellaError(f"{name}={value!r}: give a number, without quotation marks.")
        if data_size < 1:
            raise BellaError(f"data_size={data_size}: give the number of training examples.")
        if gamma is not None:
            temperature = gamma * data_size / posterior.total
        if not (math.isfinite(temperature) and temperature >= 0):
            raise BellaError(f"temperature={temperature}: give a finite number of at least 0.")
        if prior not in ("uniform", "factors", "delta"):
            raise BellaError(f"prior={prior!r}: choose 'uniform', 'factors' or 'delta'.")
        if not prior_std > 0:
            raise BellaError(f"prior_std={prior_std}: give a positive number.")
        if damping is not None and not 0 < damping < math.inf:
            raise BellaError(
                f"damping={damping}: give a finite number above 0 (at B = 0 nothing else makes the "
                "factors' metric invertible), or None."
            )
        if posterior.mover is not None:
            posterior.mover.detach()
        posterior.mover = self
        self.posterior = posterior
        self.data_size = data_size
        self.temperature = temperature
        self.prior = prior
        self.prior_std = prior_std
        self.warmup = warmup
        self.langevin = langevin
        self.damping = damping
        self.groups: list[Group] = groups_of(
            [site for site in posterior.sites() if all(p.requires_grad for p in site.parameters)],
            posterior.ranks,
            posterior.total,
        )
        self.ranks = posterior.ranks
        self.own = self.ranks.part(posterior.total)
        self.steps = 0
        self.loss_scale: float | Tensor = 1.0
        self.accumulate: float | Tensor = 1.0
        self.hears = True
        self._log: dict[str, Tensor | float] = {}

    # ------------------------------------------------------------ the contract

    @torch.no_grad()
    def step(self, learning_rate: float | None = None) -> bool:
        """Add prior, coupling and noise to ``.grad``; call between backward and the optimiser.

        Args:
            learning_rate: of the coming optimiser step; only Langevin noise needs it.

        Returns:
            ``False``: the optimiser's step follows (see `Mover`).

        Raises:
            BellaError: Langevin noise without a learning rate.
        """
        self._log = {"stein_ratio": self._stein_ratio()}
        self.couple(self.coefficient)
        self.add_prior()
        if self.langevin:
            self.add_noise(learning_rate)
        if self.damping is not None:
            self.precondition(self.damping)
        self.steps += 1
        return False

    def follow(self, optimizer: Optimizer) -> None:
        """A transport adds to gradients, whatever optimiser takes them."""

    def check_likelihood(self, likelihood: Likelihood) -> None:
        """Refuse a likelihood whose predictions this transport cannot compare.

        Raises:
            BellaError: it is one.
        """

    def couple(self, coefficient: float) -> None:
        """Add ``- coefficient * R`` to the gradients; a transport without coupling adds nothing."""

    @property
    def coefficient(self) -> float:
        """T / N, warmed up."""
        ramp = min(1.0, self.steps / self.warmup) if self.warmup else 1.0
        return ramp * self.temperature / self.data_size

    @property
    def log(self) -> dict[str, float]:
        """Figures of the last step: mean distance of two particles, bandwidth, mean kernel, ratio
        of repulsion to gradient, and the Stein ratio -(1/(n d)) Σ_i (θ_i - θ̄)·score_i, which is 1
        for samples of the posterior and far below 1 for a few particles in many dimensions."""
        return {name: float(value) for name, value in self._log.items()}

    def distance(self) -> float:
        """Root of the mean square distance ‖Δ_i - Δ_j‖ of two particles, as they are now."""
        return float(mean_distance(self.groups))

    def distances(self) -> Tensor:
        """‖Δ_i - Δ_j‖ of every two particles as they are now, (particles, particles)."""
        return distances(self.groups)

    def where_not_finite(self) -> tuple[str, list[int]] | None:
        """The layer and the particles between which the coupling has no distance; a transport that
        asks for none has no such place."""
        return None

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Called with a batch's inputs before its particles run in several passes."""

    def heard(self) -> list[Tensor]:
        """What backward passes left beside the gradients: sums over a batch, as those are, which
        processes that share a batch out add up."""
        return []

    def detach(self) -> None:
        """Stop listening to the posterior; done for a transport when another one takes over."""

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Passes inside the block are not heard: they are run to be measured, not to train."""
        before, self.hears = self.hears, False
        try:
            yield
        finally:
            self.hears = before

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps = int(state["steps"])

    # ------------------------------------------------------------ parts

    def add_prior(self) -> None:
        """Add the gradient of the negative log-prior over N."""
        if self.prior == "uniform":
            return
        weight = 1 / (self.prior_std**2 * self.data_size)
        for group in self.groups:
            if self.prior == "delta":
                group.add_to_grad(group.pull(self.prior_weights(group)), weight)
            else:
                for site in group.sites:
                    for parameter in site.parameters:
                        add_to_grad(parameter, wide(parameter), weight)

    def prior_weights(self, group: Group) -> Tensor:
        """M such that particle i feels the prior of Σ_j M_ij Δ_j: its own."""
        n = self.posterior.total
        eye = torch.eye(n, device=group.sites[0].parameters[0].device)
        return eye.to(wide(group.sites[0].parameters[0]).dtype).expand(len(group.sites), n, n)

    def add_noise(self, learning_rate: float | None) -> None:
        """Subtract √(2T / (N lr)) ξ, so that a step of SGD adds Langevin noise."""
        if learning_rate is None:
            raise BellaError("Langevin noise depends on the step: call step(learning_rate=...).")
        weight = -math.sqrt(2 * self.temperature / (self.data_size * learning_rate))
        for group in self.groups:
            for site in group.sites:
                for parameter in site.parameters:
                    add_to_grad(parameter, self.noise(parameter), weight)

    def noise(self, parameter: Tensor) -> Tensor:
        """Noise on one stacked parameter: independent between particles."""
        return self.white(parameter)[self.own.start : self.own.stop]

    def white(self, parameter: Tensor) -> Tensor:
        """White noise for all particles, the same in all processes that hold them."""
        n = self.posterior.total
        return torch.randn(n, *parameter.shape[1:], dtype=parameter.dtype, device=parameter.device)

    def precondition(self, damping: float) -> None:
        """Scaled gradients: the metric of the factor that each gradient is multiplied with."""
        for site in (site for group in self.groups for site in group.sites):
            if not isinstance(site, Factors) or site.A.grad is None or site.B.grad is None:
                continue
            A, B = wide(site.A), wide(site.B)
            eye = damping * torch.eye(A.shape[1], device=A.device, dtype=A.dtype)
            site.A.grad.copy_(torch.linalg.solve(B.mT @ B + eye, wide(site.A.grad)))
            site.B.grad.copy_(torch.linalg.solve(A @ A.mT + eye, wide(site.B.grad), left=False))

    def _stein_ratio(self) -> Tensor | float:
        n = self.posterior.total
        parameters = [p for g in self.groups for s in g.sites for p in s.parameters]
        if n == 1 or self.temperature == 0:
            return math.nan
        graded = [p for p in parameters if p.grad is not None]
        means = [wide(p).sum(0) / n for p in graded]
        self.ranks.sum(means)
        total = torch.zeros(())
        for p, mean in zip(graded, means, strict=True):
            assert p.grad is not None
            total = total.to(mean) + ((wide(p) - mean) * wide(p.grad)).sum()
        self.ranks.sum([total])
        size = sum(p[0].numel() for p in parameters) * n
        return total * self.data_size / (self.temperature * size)
