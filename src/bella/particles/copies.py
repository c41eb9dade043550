"""Whole copies: a module of which every particle owns all parameters.

Heads of low-rank particles are copies, batch norms of rank-1 components may be, and so is a whole
network for the full-parameter baselines. Parameters (and buffers) are stacked to (particles, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis
from bella.particles.layer import Dense, ParticleLayer, Site, compute_dtype
from bella.particles.recompute import rerun
from bella.trees import map_tensors, tensors_of


class Copies(ParticleLayer):
    """Any module, run once per particle with that particle's parameters.

    Args:
        name: the module's name in the network.
        axis: the posterior's particle axis.
        module: the module; its values are every particle's start.
        in_kernel: whether distances between particles count these parameters.
        trainable: names of the module's parameters that are copied; the others are frozen, and
            shared by all particles. ``None`` for all.
    """

    def __init__(
        self,
        name: str,
        axis: ParticleAxis,
        module: nn.Module,
        *,
        in_kernel: bool,
        trainable: Collection[str] | None = None,
    ):
        super().__init__(name, axis)
        self.in_kernel = in_kernel
        n = axis.particles
        # The template only lends its code. In a list it is no part of the module tree, so its own
        # values are not saved, moved or counted.
        self._template = [module]
        self.values, self.base = nn.ParameterDict(), nn.ParameterDict()
        self.paths: list[str] = []
        self.frozen_paths: list[str] = []
        for path, value in module.named_parameters():
            if trainable is None or path in trainable:
                stacked = value.detach().expand(n, *value.shape).clone()
                self.values[_key(path)] = nn.Parameter(stacked)
                self.paths.append(path)
            else:
                self.base[_key(path)] = value.requires_grad_(False)
                self.frozen_paths.append(path)
        for path, buffer in module.named_buffers():
            self.register_buffer(_key(path), buffer.detach().expand(n, *buffer.shape).clone())
        self.buffer_paths = [path for path, _ in module.named_buffers()]
        self.reruns = False

    def reset(self, seed: int, within: Sequence[str] = ("",)) -> None:
        """Start every particle differently, by the modules' own ``reset_parameters``.

        Args:
            seed: decides the starts.
            within: names of modules inside this one; ``""`` is itself.

        Raises:
            BellaError: no module there has ``reset_parameters``.
        """
        inside = [m for name in within for m in self.template.get_submodule(name).modules()]
        parts = [m for m in dict.fromkeys(inside) if hasattr(m, "reset_parameters")]
        if not parts:
            names = ", ".join(repr(f"{self.name}.{name}".strip(".")) for name in within)
            raise BellaError(
                f"Nothing in {names} has reset_parameters, so it cannot start anew: leave out "
                "the reset."
            )
        with torch.random.fork_rng():
            for particle in range(self.axis.particles):
                torch.manual_seed((seed + 7_919 * particle) % 2**63)
                for part in parts:
                    part.reset_parameters()  # type: ignore[operator]
                start = dict(self.template.named_parameters())
                for path in self.paths:
                    self.values[_key(path)].data[particle].copy_(start[path])

    @property
    def template(self) -> nn.Module:
        """The module as it was before it was copied."""
        return self._template[0]

    def states(self) -> list[dict[str, Tensor]]:
        """Parameters and buffers of each running particle, by their names in the module."""
        axis = self.axis
        # unbind, not indexing: its backward stacks the gradients once instead of filling zeros.
        values = {path: axis.select(self.values[_key(path)]).unbind(0) for path in self.paths}
        frozen = {path: self.base[_key(path)] for path in self.frozen_paths}
        # Indexing, not selecting: statistics are updated in place, so they must be views.
        return [
            {path: value[row] for path, value in values.items()}
            | frozen
            | {path: getattr(self, _key(path))[particle] for path in self.buffer_paths}
            for row, particle in enumerate(axis.chosen)
        ]

    def set_mode(self) -> None:
        """Give the template this layer's mode; frozen batch norms keep their statistics.

        Where transformers was told to checkpoint activations, whole copies run again in backward:
        a part of the template does not know whose parameters it had.
        """
        self.template.train(self.training)
        for path, module in self.template.named_modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing, self.reruns = False, True
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                own = [f"{path}.weight".lstrip("."), f"{path}.bias".lstrip(".")]
                module.train(self.training and any(name in self.paths for name in own))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run each particle's copy on its own rows; open the axis if it is not open yet."""
        axis = self.axis
        first = tensors_of((args, kwargs))[0]
        carries = axis.carries_particles(first)
        self.set_mode()
        rows = first.shape[0] // axis.width
        call: Any = partial(torch.func.functional_call, self.template)
        if self.reruns and self.training and torch.is_grad_enabled():
            call = partial(rerun, axis, call)
        outputs = []
        for row, state in enumerate(self.states()):

            def own(x: Tensor, row: int = row) -> Tensor:
                mine = carries and x.dim() and x.shape[0] == rows * axis.width
                return x[row * rows : (row + 1) * rows] if mine else x

            inputs = map_tensors(own, args), map_tensors(own, kwargs)
            outputs.append(call(state, *inputs))
        axis.is_open = True
        return join(outputs)

    def sites(self) -> list[Site]:
        """Every stacked parameter."""
        return [
            Dense(
                f"{self.name}.{path}" if self.name else path,
                self.values[_key(path)],
                self.in_kernel,
            )
            for path in self.paths
        ]

    def merged(self, particle: int | None) -> nn.Module:
        """One particle's module, or the one with averaged parameters."""
        plain = copy.deepcopy(self.template)

        def pick(stacked: Tensor) -> Tensor:
            if particle is not None:
                return stacked[particle]
            return stacked.mean(0) if stacked.is_floating_point() else stacked[0]

        for path, parameter in plain.named_parameters():  # in place, so that tied ones stay tied
            key = _key(path)
            value = pick(self.values[key]) if key in self.values else self.base[key]
            parameter.data = value.detach().clone()
        for path in self.buffer_paths:
            owner, _, leaf = path.rpartition(".")
            setattr(plain.get_submodule(owner), leaf, pick(getattr(self, _key(path))).clone())
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"particles={self.axis.particles}, of={type(self.template).__name__}"


class LinearCopies(Copies):
    """Copies of one Linear layer, in one batched product."""

    def forward(self, x: Tensor) -> Tensor:
        """All particles at once."""
        axis = self.axis
        weight = axis.select(self.values["weight"])
        bias = axis.select(self.values["bias"]) if "bias" in self.values else None
        n, outputs, inputs = weight.shape
        weight = weight.to(compute_dtype(x))
        rows = x.shape[0]
        if axis.carries_particles(x):
            y = torch.bmm(x.reshape(n, -1, inputs).to(weight.dtype), weight.mT)
        else:
            y = F.linear(x.reshape(-1, inputs), weight.flatten(0, 1))
            y = y.unflatten(-1, (n, outputs)).transpose(0, 1)
            rows *= n
        if bias is not None:
            y = y + bias.unsqueeze(1).to(y.dtype)
        axis.is_open = True
        return y.reshape(rows, *x.shape[1:-1], outputs)


def copies_of(
    name: str,
    axis: ParticleAxis,
    module: nn.Module,
    *,
    in_kernel: bool,
    trainable: Collection[str] | None = None,
) -> Copies:
    """The fastest kind of copies for this module; see `Copies`."""
    kind = LinearCopies if type(module) is nn.Linear and trainable is None else Copies
    return kind(name, axis, module, in_kernel=in_kernel, trainable=trainable)


def join(outputs: list[Any]) -> Any:
    """Concatenate the tensors of equal output trees along their first axis."""
    columns = zip(*(tensors_of(output) for output in outputs), strict=True)
    joined = iter(
        [torch.cat(column) if column[0].dim() else torch.stack(column) for column in columns]
    )
    return map_tensors(lambda _: next(joined), outputs[0])


def _key(path: str) -> str:
    return path.replace(".", "/")
