"""How the active set of a sparse posterior moves: weights leave, as many others come.

Li et al. 2024, Algorithm 1: every ``interval`` steps, in the place of the optimiser's step, each
layer removes the active weights of the smallest criterion and adds the inactive ones of the largest
|∂loss/∂μ|. A weight that stays keeps its μ, σ and optimiser state to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bella.errors import BellaError
from bella.posteriors.sparse.criteria import by_name
from bella.posteriors.sparse.layers import SparseLayer
from bella.posteriors.sparse.posterior import SparsePosterior


class Topology:
    """Moves the active sets. Step it after each step's last backward pass: it is a
    `bella.transport.Mover` that stands for the optimiser's step where the sets change.

        topology = Topology(posterior, steps=len(loader) * epochs)
        topology.follow(optimizer)
        ...
        loss.backward()
        if not topology.step():
            optimizer.step()

    or in one call ``bella.fit(posterior, data, movers=[topology])``. The dense gradient of one
    layer exists inside that layer's backward pass alone, on the steps where the set changes;
    ``fraction`` of the active number of its elements is kept until then. With several backward
    passes a step, the last one decides.

    The gradient is the likelihood's. The divergence adds nothing to it: an inactive weight stands
    at μ = 0, where the divergence is flat, and so does one that has just left.

    Args:
        posterior: whose active sets move.
        steps: length of the whole training.
        interval: ΔT, steps between two changes.
        until: the part of the training after which the sets stay.
        fraction: α, the part of a layer's active set that moves at first; it falls as a cosine.

    Attributes:
        steps: taken so far.

    Raises:
        BellaError: arguments out of range.
    """

    def __init__(
        self,
        posterior: SparsePosterior,
        steps: int,
        *,
        interval: int = 100,
        until: float = 0.75,
        fraction: float = 0.3,
    ):
        if steps < 1 or interval < 1:
            raise BellaError(f"steps={steps} and interval={interval}: give at least 1 of each.")
        if not (0 <= until <= 1 and 0 <= fraction <= 1):
            raise BellaError(f"until={until} and fraction={fraction}: give numbers from 0 to 1.")
        self.layers = [
            layer for layer in posterior.sparse_layers.values() if layer.index is not None
        ]
        self.criterion = by_name(posterior.settings["criterion"], posterior.settings["exponent"])
        self.interval = interval
        self.end = until * steps
        self.fraction = fraction
        self.optimizer: Optimizer | None = None
        self.steps = 0
        self._listen()

    def follow(self, optimizer: Optimizer) -> None:
        """Let this optimiser's state move with the active sets."""
        self.optimizer = optimizer

    def is_due(self, step: int) -> bool:
        """Whether the sets change at this step, counted from 0."""
        return bool(self.layers) and 0 < step < self.end and step % self.interval == 0

    def moving(self, step: int) -> float:
        """f(t) = α/2 (1 + cos(π t / T_end)), the part of each active set that moves."""
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.end))

    def step(self, learning_rate: float | None = None) -> bool:
        """Change the sets if it is time; ``True`` stands for: leave out the optimiser's step.

        Raises:
            BellaError: no optimiser to follow, or no gradients.
        """
        due = self.is_due(self.steps)
        if due:
            for layer in self.layers:
                self.change(layer, int(layer.mean.numel() * self.moving(self.steps)))
        self.steps += 1
        self._listen()
        return due

    def state_dict(self) -> dict[str, Any]:
        """How far it is; the sets are the posterior's."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        self.steps = int(state["steps"])
        self._listen()

    def _listen(self) -> None:
        """Where the coming step changes the sets, its backward pass notes dense gradients."""
        listen = self.is_due(self.steps)
        for layer in self.layers:
            layer.scouts = max(1, int(self.fraction * layer.mean.numel())) if listen else 0
            layer.found = None

    @torch.no_grad()
    def change(self, layer: SparseLayer, count: int) -> None:
        """Remove ``count`` active weights of a layer and add as many.

        A weight that is removed and added at once has never left.

        Raises:
            BellaError: no optimiser to follow, or no gradients.
        """
        if self.optimizer is None:
            raise BellaError("A Topology moves its optimiser's state: call topology.follow first.")
        if layer.found is None or layer.index is None:
            raise BellaError(
                f"Layer {layer.name!r} has no gradient: step the topology after every step's "
                "backward pass."
            )
        worth = self.criterion(layer.mean[0], layer.std[0])
        leaving, staying = worth.argsort().split([count, len(worth) - count])
        found = layer.found
        # Those that just left compete with the others for the free places.
        candidates = torch.cat((found.gradients, found.active[leaving]))
        positions = torch.cat((found.positions, layer.index[leaving].long()))
        sources = torch.cat((torch.full_like(found.positions, -1), leaving))
        coming = candidates.abs().topk(count).indices

        index = torch.cat((layer.index[staying].long(), positions[coming]))
        source = torch.cat((staying, sources[coming]))
        order = index.argsort()
        index, source = index[order], source[order]
        new_rho = layer.rho[0, staying].mean()
        for parameter, fresh in ((layer.mean, 0.0), (layer.rho, new_rho)):
            for value in self.optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.copy_(moved(value, source, 0.0))
            parameter.copy_(moved(parameter, source, fresh))
            parameter.grad = None  # it belongs to the old positions
        layer.index.copy_(index)


def moved(values: Tensor, source: Tensor, fresh: Tensor | float) -> Tensor:
    """Values (1, k) at their new places: element i comes from ``source[i]``, or is ``fresh`` where
    that is -1."""
    fresh = torch.as_tensor(fresh, dtype=values.dtype, device=values.device)
    return torch.where(source < 0, fresh, values[:, source.clamp_min(0)])
