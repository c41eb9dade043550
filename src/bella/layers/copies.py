"""Whole copies: a module of which every particle owns all parameters.

Heads of low-rank particles are copies, and so is a whole network for the full-parameter baselines.
Parameters (and buffers) are stacked to (particles, ...).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import BellaError
from bella.layers.axis import ParticleAxis, map_tensors, tensors_of
from bella.layers.base import Dense, ParticleLayer, Site, compute_dtype


class Copies(ParticleLayer):
    """Any module, run once per particle with that particle's parameters.

    Args:
        name: the module's name in the network.
        axis: the posterior's particle axis.
        module: the module; its values are every particle's start.
        in_kernel: whether distances between particles count these parameters.
    """

    def __init__(self, name: str, axis: ParticleAxis, module: nn.Module, *, in_kernel: bool):
        super().__init__(name, axis)
        if not any(True for _ in module.parameters()):
            raise BellaError(
                f"modules_to_save names {name!r}, a {type(module).__name__} without parameters: "
                "name a module that has some."
            )
        self.in_kernel = in_kernel
        n = axis.particles
        # The template only lends its code. In a list it is no part of the module tree, so its own
        # values are not saved, moved or counted.
        self._template = [module]
        self.values = nn.ParameterDict(
            {
                _key(path): nn.Parameter(value.detach().expand(n, *value.shape).clone())
                for path, value in module.named_parameters()
            }
        )
        for path, value in module.named_buffers():
            self.register_buffer(_key(path), value.detach().expand(n, *value.shape).clone())
        self.buffer_paths = [path for path, _ in module.named_buffers()]

    def reset(self, seed: int) -> None:
        """Start every particle differently, by the module's own ``reset_parameters``.

        Raises:
            BellaError: no part of the module has ``reset_parameters``.
        """
        parts = [part for part in self.template.modules() if hasattr(part, "reset_parameters")]
        if not parts:
            raise BellaError(
                f"head_init='reset': {self.name!r} has no reset_parameters; use head_init='copy'."
            )
        with torch.random.fork_rng():
            for particle in range(self.axis.particles):
                torch.manual_seed(seed + 7_919 * particle)
                for part in parts:
                    part.reset_parameters()  # type: ignore[operator]
                for path, value in self.template.named_parameters():
                    self.values[_key(path)].data[particle].copy_(value)

    @property
    def template(self) -> nn.Module:
        """The module as it was before it was copied."""
        return self._template[0]

    def state_of(self, row: int, stacked: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """One running particle's parameters and buffers, by their names in the module."""
        return {path: values[row] for path, values in stacked.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run each particle's copy on its own rows; open the axis if it is not open yet."""
        axis = self.axis
        first = tensors_of((args, kwargs))[0]
        carries = axis.carries_particles(first)
        # unbind, not indexing: its backward stacks the gradients once instead of filling zeros.
        stacked = {
            path: axis.select(self.values[_key(path)]).unbind(0)
            for path, _ in self.template.named_parameters()
        } | {path: axis.select(getattr(self, _key(path))).unbind(0) for path in self.buffer_paths}
        rows = first.shape[0] // axis.width
        outputs = []
        for row in range(axis.width):

            def own(x: Tensor, row: int = row) -> Tensor:
                mine = carries and x.dim() and x.shape[0] == rows * axis.width
                return x[row * rows : (row + 1) * rows] if mine else x

            inputs = map_tensors(own, args), map_tensors(own, kwargs)
            self.template.train(self.training)
            outputs.append(
                torch.func.functional_call(self.template, self.state_of(row, stacked), *inputs)
            )
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
            for path, _ in self.template.named_parameters()
        ]

    def merged(self, particle: int | None) -> nn.Module:
        """One particle's module, or the one with averaged parameters."""
        plain = copy.deepcopy(self.template)

        def pick(stacked: Tensor) -> Tensor:
            if particle is not None:
                return stacked[particle]
            return stacked.mean(0) if stacked.is_floating_point() else stacked[0]

        state = {
            path: pick(self.values[_key(path)].detach()) for path, _ in plain.named_parameters()
        }
        state |= {path: pick(getattr(self, _key(path))) for path in self.buffer_paths}
        for path, value in state.items():
            owner, _, leaf = path.rpartition(".")
            module = plain.get_submodule(owner)
            if leaf in module._parameters:
                setattr(module, leaf, nn.Parameter(value.clone(), requires_grad=False))
            else:
                setattr(module, leaf, value.clone())
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


def copies_of(name: str, axis: ParticleAxis, module: nn.Module, *, in_kernel: bool) -> Copies:
    """The fastest kind of copies for this module."""
    kind = LinearCopies if type(module) is nn.Linear else Copies
    return kind(name, axis, module, in_kernel=in_kernel)


def join(outputs: list[Any]) -> Any:
    """Concatenate the tensors of equal output trees along their first axis."""
    columns = zip(*(tensors_of(output) for output in outputs), strict=True)
    joined = iter(
        [torch.cat(column) if column[0].dim() else torch.stack(column) for column in columns]
    )
    return map_tensors(lambda _: next(joined), outputs[0])


def _key(path: str) -> str:
    return path.replace(".", "/")
