"""Whole copies: a module of which every particle owns all parameters.

Heads of low-rank particles are copies, batch norms of rank-1 components may be, and so is a whole
network for the full-parameter baselines. Parameters (and buffers) are stacked to (particles, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bella.errors import BellaError
from bella.particles.answers import stand_in_for, take_facts
from bella.particles.axis import ParticleAxis, UnprovenError
from bella.particles.layer import Dense, ParticleLayer, Site, compute_dtype
from bella.particles.linearity import has_own_weight
from bella.particles.prefix import Turns
from bella.particles.recompute import rerun
from bella.particles.roles import Role, map_roles
from bella.trees import map_tensors, tensors_of


class Copies(ParticleLayer):
    """Any module, run once per particle with that particle's parameters.

    Args:
        name: the module's name in the network.
        axis: the posterior's particle axis.
        module: the module; its values are every particle's start.
        in_kernel: whether distances between particles count these parameters.
        trainable: names of the module's parameters that are copied; the others are shared by all
            particles, and to be frozen by the caller. ``None`` for all.
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
                self.base[_key(path)] = value
                self.frozen_paths.append(path)
        for path, buffer in module.named_buffers():
            self.register_buffer(_key(path), buffer.detach().expand(n, *buffer.shape).clone())
        self.buffer_paths = [path for path, _ in module.named_buffers()]
        self.reruns = False
        self.turns = Turns()
        if not list(module.children()):
            take_facts(self, module)

    # ------------------------------------------------------------ what a parent may ask

    @property
    def weight(self) -> Tensor:
        """The weight's shape, dtype and device; see `bella.particles.answers`."""
        return self._asked_for("weight")

    @property
    def bias(self) -> Tensor | None:
        """As `weight`; ``None`` where the module's is."""
        if getattr(self.template, "bias", self) is None:
            return None
        return self._asked_for("bias")

    def _asked_for(self, name: str) -> Tensor:
        if name in self.values:
            value, shape = self.values[name], self.values[name].shape[1:]
        elif name in self.base:
            value, shape = self.base[name], self.base[name].shape
        else:
            raise AttributeError(name)
        return stand_in_for(self.name, shape, dtype=value.dtype, device=value.device)

    # ------------------------------------------------------------ their values

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

    @property
    def normalises(self) -> bool:
        """Whether there is a batch norm inside."""
        norm = nn.modules.batchnorm._BatchNorm
        return any(isinstance(module, norm) for module in self.template.modules())

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

    def state_of(self, particle: int) -> dict[str, Tensor]:
        """One particle's own parameters and buffers (views), by their names in the module."""
        stacked = {path: self.values[_key(path)].detach() for path in self.paths}
        stacked |= {path: getattr(self, _key(path)) for path in self.buffer_paths}
        return {path: value[particle] for path, value in stacked.items()}

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
        carries = axis.carries_particles(tensors_of((args, kwargs))[0])
        with self.turns:  # the template lends its code to one call at a time
            self.set_mode()
            call: Any = self.call
            if self.reruns and self.training and torch.is_grad_enabled():
                call = partial(rerun, axis, call)
            states = self.states()
            if axis.width == 1:
                return call(states[0], *args, **kwargs)
            met = axis.layer(self.name)
            if met is None:
                raise UnprovenError(f"{self.name} did not run in the proof")
            outputs = []
            for row, state in enumerate(states):

                def own(x: Tensor, role: Role, row: int = row) -> Tensor:
                    return x.chunk(axis.width, role)[row] if carries and role is not None else x

                mine, named = map_roles(own, (args, kwargs), met.inputs)
                outputs.append(call(state, *mine, **named))
        axis.is_open = True
        return join(outputs, met.outputs)

    def call(self, state: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The module with one particle's parameters and buffers."""
        with self.turns:
            return torch.func.functional_call(self.template, state, args, kwargs)

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


def as_given(network: nn.Module) -> Any:
    """A posterior's network as its maker gave it: where particles are whole copies, what was
    copied. What a network says of itself (its kind, its likelihood, its arguments, that it
    generates) is asked of that one."""
    return network.template if isinstance(network, Copies) else network


def copies_of(
    name: str,
    axis: ParticleAxis,
    module: nn.Module,
    *,
    in_kernel: bool,
    trainable: Collection[str] | None = None,
) -> Copies:
    """The fastest kind of copies for this module; see `Copies`.

    Raises:
        BellaError: the module cannot be copied.
    """
    if (reason := why_not_copied(module, trainable)) is not None:
        raise BellaError(f"{repr(name) if name else 'The network'} {reason}.")
    simple = trainable is None and type(module) is nn.Linear and has_own_weight(module)
    kind = LinearCopies if simple else Copies
    return kind(name, axis, module, in_kernel=in_kernel, trainable=trainable)


def why_not_copied(module: nn.Module, trainable: Collection[str] | None = None) -> str | None:
    """What keeps particles from owning a module's parameters; ``None`` if nothing does."""
    for path, value in module.named_parameters():
        if trainable is not None and path not in trainable:
            continue
        if isinstance(value, UninitializedParameter):
            return f"has a parameter {path!r} without a shape yet: call the network once first"
        if not value.is_floating_point():
            return (
                f"has a parameter {path!r} of {value.dtype} numbers, which no particle could "
                "train: name other modules, or load the network unquantised"
            )
        if type(value.data) is not Tensor:
            return (
                f"has a parameter {path!r} that is a {type(value.data).__name__} and no ordinary "
                "tensor, so it cannot be copied for each particle: name other modules"
            )
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            # With a graph behind it, it is made from parameters, and would not be each particle's.
            if isinstance(value, Tensor) and (name == "weight" or value.grad_fn is not None):
                return (
                    f"keeps {f'{path}.{name}'.lstrip('.')!r} beside its parameters, as "
                    "torch.nn.utils.weight_norm and spectral_norm do, so it cannot be copied for "
                    "each particle: use those of torch.nn.utils.parametrizations"
                )
    return None


def why_no_head(network: nn.Module, unreached: Mapping[str, str], name: str) -> str | None:
    """A sentence for a module of which particles cannot own copies; ``None`` if they can."""
    head = network.get_submodule(name)
    said = f"modules_to_save names {name!r}, a {type(head).__name__}"
    if type(head).forward is nn.Module.forward:
        return f"{said}, which is never called as a whole: name the modules inside it."
    if not any(True for _ in head.parameters()):
        return f"{said} without parameters: name a module that has some."
    reason = why_not_copied(head)
    return unreached.get(name) or (reason and f"{said}, which {reason}.")


def join(outputs: list[Any], roles: Sequence[Role]) -> Any:
    """Concatenate the tensors of equal output trees along the axis that carries the batch.

    Raises:
        UnprovenError: one has no such axis.
    """
    columns = list(zip(*(tensors_of(output) for output in outputs), strict=True))
    if len(columns) != len(roles) or None in roles:
        raise UnprovenError("a module that is copied returns something other than rows")
    joined = iter([torch.cat(x, role) for x, role in zip(columns, roles, strict=True)])  # type: ignore[arg-type]
    return map_tensors(lambda _: next(joined), outputs[0])


def _key(path: str) -> str:
    return path.replace(".", "/")
