"""The Gauss-Newton curvature of a particle by Kronecker factors, and its outputs' Jacobian.

For one matrix, with inputs a and output gradients g at the positions t of example n,

    H ≈ G ⊗ S,    S = mean_{n,t} a aᵀ,    G = Σ_{n,t} Σ_c g_c g_cᵀ,

where g_c is the backward pass of column c of a root of the likelihood's curvature: the exact Fisher
matrix, no labels drawn. Positions are taken as further examples (KFAC-expand); a position that no
output feels has no part in H, and none in the mean S. With one position an example, G ⊗ S is exact
where the a of all examples agree, or all their Σ g gᵀ.

Source:
    Martens & Grosse 2015; Eschenhagen et al. 2023 (KFAC-expand).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.inputs import split, to
from bella.likelihood import Likelihood, logits_of
from bella.likelihood.scoring import beside
from bella.particles.layer import ParticleLayer
from bella.posterior import Posterior
from bella.posteriors.laplace.kronecker import Jacobian, Outer
from bella.posteriors.laplace.maps import LinearMap
from bella.posteriors.laplace.second_moments import Moment


@dataclass
class Call:
    """One call of a layer: its input, where gradients of its output arrive, and zeros like it."""

    x: Tensor
    edge: Any
    zeros: Tensor


@dataclass
class Pass:
    """One forward pass, ready for any number of backward passes.

    Attributes:
        logits: (batch, classes).
        maps: the maps of the layers that ran.
        calls: of each layer.
    """

    logits: Float[Tensor, "batch classes"]
    maps: list[LinearMap]
    calls: dict[ParticleLayer, list[Call]]

    def inputs(self) -> list[Float[Tensor, "batch positions in"]]:
        """What each map multiplied."""
        return [
            self._positions(linear, [linear.inputs(call.x) for call in self.calls[linear.layer]])
            for linear in self.maps
        ]

    def gradients(
        self, directions: Float[Tensor, "batch classes"]
    ) -> Iterator[Float[Tensor, "batch positions out"]]:
        """Gradients of ⟨directions, logits⟩ at each map's output, by one backward pass."""
        calls = [call for calls in self.calls.values() for call in calls]
        found = torch.autograd.grad(
            self.logits,
            [call.edge for call in calls],
            directions,
            retain_graph=True,
            allow_unused=True,
        )
        grads = {
            id(call): call.zeros if grad is None else grad
            for call, grad in zip(calls, found, strict=True)
        }
        for linear in self.maps:
            own = self.calls[linear.layer]
            yield self._positions(linear, [linear.gradients(grads[id(call)]) for call in own])

    def _positions(self, linear: LinearMap, parts: list[Tensor]) -> Tensor:
        """Calls are further positions, in the dtype of the curvature."""
        dtype = next(iter(linear.parameters().values())).dtype
        batch = len(self.logits)
        return torch.cat([part.reshape(batch, -1, part.shape[-1]).to(dtype) for part in parts], 1)


def run(posterior: Posterior, maps: Sequence[LinearMap], args: tuple, kwargs: dict) -> Pass:
    """Run the particle and listen to its layers. Call it with gradients enabled.

    Raises:
        BellaError: the outputs are no logits (batch, classes).
    """
    calls: dict[ParticleLayer, list[Call]] = {}

    def listen(layer: Any, inputs: tuple, output: Tensor) -> Tensor:
        # What follows may change its input in place. The copy is no view, so that the edge stays
        # in the graph; the edge, unlike the copy, keeps the output as it was.
        copy = output.clone()
        edge = torch.autograd.graph.get_gradient_edge(copy)
        zeros = output.new_zeros(()).expand(output.shape)
        calls.setdefault(layer, []).append(Call(inputs[0].detach(), edge, zeros))
        return copy

    posterior.prove(*args, **kwargs)
    with ExitStack() as hooks:
        for layer in dict.fromkeys(linear.layer for linear in maps):
            hooks.callback(layer.register_forward_hook(listen).remove)
        logits = logits_of(posterior(*args, **kwargs))
    if logits.dim() != 3:
        raise BellaError(
            f"A Laplace approximation needs logits (batch, classes) and the network returns "
            f"{tuple(logits.shape[1:])}: let it return one row for each example."
        )
    return Pass(logits[0], [linear for linear in maps if linear.layer in calls], calls)


def jacobians(passed: Pass) -> list[Jacobian]:
    """Each class's gradient with respect to each matrix, by one backward pass a class.

    Memory: classes x batch x parameters of the matrix, where it is used at several positions.
    """
    batch, classes = passed.logits.shape
    inputs = passed.inputs()
    columns: list[list[Tensor]] = [[] for _ in inputs]
    for unit in torch.eye(classes, dtype=passed.logits.dtype, device=passed.logits.device):
        gradients = passed.gradients(unit.expand(batch, classes))
        for column, a, g in zip(columns, inputs, gradients, strict=True):
            column.append(g[:, 0] if a.shape[1] == 1 else g.mT @ a)
    return [
        Outer(torch.stack(column), a[:, 0]) if a.shape[1] == 1 else torch.stack(column)
        for column, a in zip(columns, inputs, strict=True)
    ]


@dataclass
class Sums:
    """What one pass over the data adds up for one matrix.

    Attributes:
        outputs: Σ g gᵀ, which is G.
        inputs: Σ a aᵀ.
        count: number of positions in it.
    """

    outputs: Moment
    inputs: Moment
    count: Tensor


def accumulate(
    posterior: Posterior,
    maps: Sequence[LinearMap],
    loader: Any,
    likelihood: Likelihood,
    make: Callable[[LinearMap], Sums],
) -> tuple[list[Sums], float]:
    """Sum the factors over all data.

    Args:
        posterior: of one particle, in evaluation mode.
        maps: its maps.
        loader: of (inputs, labels); inputs may be streams of ``posterior.prefix``.
        likelihood: of the labels.
        make: empty sums for a map.

    Returns:
        The sums of each map, and the log-likelihood of the data in nats.

    Raises:
        BellaError: no data, labels that do not fit, or logits that are not finite.
    """
    device = next(posterior.network.parameters()).device
    sums = {linear: make(linear) for linear in maps}
    log_likelihood, examples = 0.0, 0
    for item in loader:
        args, kwargs, labels = to(split(item), device)
        with torch.enable_grad():
            passed = run(posterior, maps, args, kwargs)
        logits = passed.logits.detach().to(torch.promote_types(passed.logits.dtype, torch.float32))
        log_likelihood += log_of(likelihood, logits, labels)
        examples += len(logits)
        inputs = passed.inputs()
        felt = [a.new_zeros(a.shape[:2], dtype=torch.bool) for a in inputs]
        for column in likelihood.root(logits).to(passed.logits).unbind(-1):
            for i, g in enumerate(passed.gradients(column)):
                felt[i] |= (g != 0).any(-1)
                sums[passed.maps[i]].outputs.add(g.flatten(0, 1))
        for linear, a, where in zip(passed.maps, inputs, felt, strict=True):
            sums[linear].inputs.add((a * where.unsqueeze(-1)).flatten(0, 1))
            sums[linear].count += where.sum()
    if not examples:
        raise BellaError("There is nothing to take the curvature of: the data are empty.")
    if not torch.isfinite(torch.tensor(log_likelihood)):
        raise BellaError("The network's logits are not finite: are the inputs, and did it train?")
    return list(sums.values()), log_likelihood


def log_of(likelihood: Likelihood, outputs: Tensor, labels: Tensor) -> float:
    """Σ log p(label | outputs) of one particle's outputs (batch, outputs), in nats.

    Raises:
        BellaError: labels that do not fit.
    """
    scores = likelihood.scores(outputs.unsqueeze(0), outputs, labels, ClassAxis(-1))
    return float(
        likelihood.log(scores[0], beside(likelihood.targets(labels), scores, likelihood)[0])
    )
