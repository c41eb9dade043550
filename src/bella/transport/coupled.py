"""What transports with kernels between particles share: kernels, and repulsion by weights."""

from __future__ import annotations

from typing import Any

import torch

from bella.posterior import Posterior
from bella.transport.base import Transport
from bella.transport.coupling import Coupling, Measurement, Scope, where_not_finite
from bella.transport.gram import differences
from bella.transport.spread import Spread


def _square(x: torch.Tensor) -> torch.Tensor:
    """‖x‖², in one reading of it."""
    return torch.linalg.vector_norm(x).square()


class Coupled(Transport):
    """A transport with kernels between particles in the space of their parameters.

    Args:
        posterior: whose particles move.
        kernel: ``rbf``, ``imq`` or ``laplace``.
        bandwidth: ``median`` of square distances, ``liu-wang``, or σ as a number, in the units of
            the distances: with ``normalize`` and scope ``global`` those are medians.
        scope: ``global``, one kernel on the mean of all layers' square distances, or ``layer``, one
            for each.
        normalize: divide each layer's square distances by their median before their mean is taken.
        min_bandwidth: smallest σ² and smallest median.
        **options: those of `Transport`; ``data_size`` is needed.
    """

    def __init__(
        self,
        posterior: Posterior,
        *,
        kernel: str = "rbf",
        bandwidth: str | float = "median",
        scope: Scope = "global",
        normalize: bool = True,
        min_bandwidth: float = 1e-12,
        **options: Any,
    ):
        super().__init__(posterior, **options)
        self.coupling = Coupling(
            self.groups,
            kernel=kernel,
            rule=bandwidth,
            scope=scope,
            normalize=normalize,
            floor=min_bandwidth,
        )
        self.spread = Spread(self.groups)
        if posterior.total > 1:
            self.coupling.measure()  # an unknown bandwidth rule is refused here, not in training

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | {"spread_steps": self.spread.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        super().load_state_dict(state)
        self.spread.steps = int(state.get("spread_steps", 0))

    def where_not_finite(self) -> tuple[str, list[int]] | None:
        """The first layer in which two particles have no finite distance, and which they are."""
        return where_not_finite(self.groups)

    def repel(self, measured: Measurement, weights: list[torch.Tensor], coefficient: float) -> None:
        """Add -coefficient Σ_j weights_ij (Δ_i - Δ_j) to the gradients, and log.

        Particles that are one point, and would stay one, are parted first; see `Spread`.
        """
        if coefficient:
            self.spread.part()
        own = [p.grad for g in self.groups for s in g.sites for p in s.parameters]
        squares = [_square(g.float()) for g in own if g is not None]
        gradient = torch.stack(squares).sum() if squares else torch.zeros(())
        repulsion = torch.zeros(())
        for group, weight in zip(self.groups, weights, strict=True):
            if group.in_kernel and coefficient:
                forces = group.pull(differences(weight))
                repulsion = repulsion.to(weight.device) + sum(map(_square, forces))
                group.add_to_grad(forces, -coefficient)
        self.ranks.sum([gradient, repulsion])
        self._log |= {
            "distance": measured.distance.sqrt(),
            "bandwidth": measured.width.sqrt(),
            "mean_kernel": measured.mean_k,
            "repulsion_ratio": coefficient * (repulsion / (gradient + 1e-30)) ** 0.5,
            "spread_steps": float(self.spread.steps),
        }
