"""`function`: particles repel each other in what they predict, not in their weights.

The kernel stands on the log-probabilities f_i of the minibatch; the repulsion

    R(i) = Σ_j c_ij (f_i - f_j),   c_ij = slope_ij / Σ_j k_ij

is pulled back through the softmax to the logits and joins the loss's gradient there, so one
backward pass serves both. It does not depend on the gauge, and its dimension is low.

Source:
    Wang et al. 2019 (function-space particle optimisation); D'Angelo & Fortuin 2021.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.likelihood import Likelihood, logits_of, of_posterior
from bella.posterior import Posterior
from bella.transport import kernels
from bella.transport.base import Transport
from bella.transport.gram import differences, from_first, inner_dense, square_distances
from bella.transport.spread import Spread


class Function(Transport):
    """Repulsion between predictions on the minibatch.

    Args:
        posterior: whose particles move.
        kernel: ``rbf``, ``imq`` or ``laplace``.
        bandwidth: ``median`` of square distances, ``liu-wang``, or σ as a number.
        min_bandwidth: smallest σ².
        class_axis: where the network's outputs have their classes, if their kind leaves it open
            (see `bella.classes.ClassAxis`). All positions are compared, padding too.
        **options: those of `Transport`; ``data_size`` is needed.
    """

    name: ClassVar[str] = "function"
    separates: ClassVar[bool] = False  # parts need a pass of all particles before them

    def __init__(
        self,
        posterior: Posterior,
        *,
        kernel: str = "rbf",
        bandwidth: str | float = "median",
        min_bandwidth: float = 1e-6,
        class_axis: int | None = None,
        **options: Any,
    ):
        super().__init__(posterior, **options)
        if (kind := of_posterior(posterior, scoring=False)) is not None:
            self.check_likelihood(kind)
        self.axis = ClassAxis(class_axis)
        self.spread = Spread(self.groups)
        self.kernel = kernels.kernel_named(kernel)
        self.rule = bandwidth
        self.floor = min_bandwidth
        kernels.bandwidth(torch.zeros(1, 1), bandwidth, min_bandwidth)  # refuses an unknown rule
        self.everyone: Tensor | None = None  # all particles' log-probabilities, when run in parts
        self._felt: dict[str, Tensor | float] = {}
        self.handle = posterior.register_forward_hook(self._listen)

    def check_likelihood(self, likelihood: Likelihood) -> None:
        """See `Transport.check_likelihood`: there have to be classes."""
        if likelihood.name in ("bernoulli", "gaussian"):
            raise BellaError(
                "transport='function' compares the particles' probabilities of classes, and the "
                f"likelihood is {likelihood.name!r}: choose 'ensemble', 'repulsive' or 'svgd'."
            )

    def detach(self) -> None:
        """Stop listening to the outputs."""
        self.handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | {"spread_steps": self.spread.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.spread.steps = int(state.get("spread_steps", 0))

    @torch.no_grad()
    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Predict a batch with all particles before they are trained on it in several passes."""
        parts = []
        for particle in range(self.posterior.particles):
            with self.posterior.subset([particle]):
                self.everyone = None
                outputs = self.posterior(*args, **kwargs)
                placed = self.axis.place(logits_of(outputs), outputs)
                parts.append(log_probabilities(placed))
        self.everyone = self.ranks.gather(torch.cat(parts), self.posterior.total)

    def _listen(self, posterior: Any, inputs: Any, outputs: Any) -> None:
        chosen = posterior.axis.chosen
        trains = posterior.training and torch.is_grad_enabled()
        if posterior.total == 1 or not (trains and self.hears):
            return
        logits = logits_of(outputs)
        if not logits.requires_grad:
            return
        own = log_probabilities(self.axis.place(logits.detach(), outputs))
        if len(chosen) < posterior.particles and self.everyone is None:
            raise BellaError(
                "function repels every particle from all others, but only some run: "
                "call prepare(inputs) before the parts."
            )
        everyone = self.everyone
        if len(chosen) == posterior.particles:
            in_order = sorted(range(len(chosen)), key=chosen.__getitem__)
            everyone = self.ranks.gather(own[in_order], posterior.total)
        assert everyone is not None
        axis = self.axis.find(logits, outputs)

        def push(grad: Tensor) -> Tensor:
            return grad + self.force(everyone, [self.own[i] for i in chosen]).to(
                grad.dtype
            ).movedim(-1, axis)

        logits.register_hook(push)

    @torch.no_grad()
    def force(self, everyone: Tensor, chosen: list[int]) -> Tensor:
        """-(T/N) R on the chosen particles' logits, given all log-probabilities
        (n, batch, ..., classes)."""
        # The force sees differences alone, and in the Gram close particles would lose theirs.
        flat = from_first(everyone.flatten(1).unsqueeze(0))
        d2 = square_distances(inner_dense(flat))
        width = kernels.bandwidth(d2, self.rule, self.floor)
        k, slope = self.kernel(d2, width)
        pull = (differences(slope / k.sum(-1, keepdim=True)) @ flat).view_as(everyone)[chosen]
        # The Jacobian of log-softmax, transposed.
        pull = pull - everyone[chosen].exp() * pull.sum(-1, keepdim=True)
        n = k.shape[-1]
        self._felt = {
            "distance": (d2.sum() / (n * (n - 1))).sqrt(),
            "bandwidth": width.sqrt().mean(),
            "mean_kernel": (k.sum() - k.diagonal(dim1=-2, dim2=-1).sum()) / (n * (n - 1)),
        }
        return -self.coefficient * self.loss_scale / self.accumulate * pull

    def couple(self, coefficient: float) -> None:
        """The repulsion came in through the logits; its figures are left to log, and particles that
        are one point to part."""
        if coefficient and self.posterior.total > 1:
            self.spread.part()
        self._log |= self._felt | {"spread_steps": float(self.spread.steps)}
        self.everyone = None


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities of logits (..., classes), in float32 or better."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.log_softmax(logits.to(dtype), -1)
