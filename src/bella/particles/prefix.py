"""The shared prefix: what comes before the first particle layer runs once for all particles.

A pass has two halves. The first runs the network on the plain batch up to an *entrance* and stops
there, holding what arrived. The second runs the network on particles x batch rows, except that
modules of the prefix answer with placeholders of the right shape and the entrance takes what was
held, folded. So all code after the entrance, and all code of the network around its blocks, sees
one consistent number of rows: masks, reshapes and index arithmetic need no special case. What the
network throws dice for (layers that it skips at random) falls the same way in both halves.

What was held (`Stream`) may also be kept for a whole data set: then training costs only the layers
after the entrance.

Placeholders are NaN. A network that carries something past the entrance, outside the entrance's
own arguments, gives other outputs than the passes of single particles: `bella.particles.proof`
finds that out, and then nothing is shared.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis, Pass
from bella.particles.layer import ParticleLayer
from bella.particles.roles import MixedError, Role, examples, map_roles, roles_of, with_roles
from bella.trees import fresh, leaves_of, tensors_of


def entrance_of(network: nn.Module, layer: str) -> str:
    """The module at whose entrance the axis opens for a particle layer named ``layer``.

    It is the outermost block around the layer, because a residual stream needs the same rows on
    both branches: a child of a ``ModuleList``, or of a ``Sequential`` that repeats blocks (several
    of one class, or a stage among stages). Where there is no such block, the layer itself.
    """
    parts = layer.split(".")
    module: nn.Module = network
    in_stage = False
    for depth, part in enumerate(parts):
        parent, module = module, module.get_submodule(part)
        path = ".".join(parts[: depth + 1])
        if isinstance(parent, nn.ModuleList):
            return path
        if isinstance(parent, nn.Sequential):
            repeated = sum(type(child) is type(module) for child in parent) > 1
            if (repeated or in_stage) and not isinstance(module, nn.Sequential | nn.ModuleList):
                return path
            in_stage = True
    return layer


class Places:
    """Which tensors of a stream carry the batch; what a proof found for a kind of pass.

    Args:
        kind: the structure of the inputs, and what else decides how they run.
        inputs: roles of the network's inputs.
        entrance: name of the module that they arrive at.
        arrived: roles of that module's arguments.
        outputs: per module of the prefix, the roles of what each of its calls returns.
        single: whether this was found with a batch of one.
    """

    def __init__(
        self,
        kind: Any,
        inputs: tuple[Role, ...],
        *,
        single: bool = False,
        entrance: str = "",
        arrived: tuple[Role, ...] = (),
        outputs: dict[str, list[tuple[Role, ...]]] | None = None,
    ):
        self.kind = kind
        self.inputs = inputs
        self.entrance = entrance
        self.arrived = arrived
        self.outputs = outputs or {}
        self.single = single

    def of(self, name: str, number: int) -> tuple[Role, ...]:
        """Roles of what the ``number``-th call of a module of the prefix returns.

        Raises:
            MixedError: it was called more often than in the proof, and not always alike.
        """
        known = self.outputs[name]
        if number < len(known):
            return known[number]
        if len(set(known)) > 1:
            raise MixedError(f"{name} was called more often than in the proof")
        return known[0]


class Dice:
    """Random numbers of a first half: the states before it, after its modules, and at its end."""

    def __init__(self, device: torch.device):
        self.device = device
        self.before = self.now()
        self.others = random.getstate(), np.random.get_state()
        self.after: dict[tuple[str, int], list[Tensor]] = {}
        self.end = self.before
        self.others_end: Any = self.others

    def now(self) -> list[Tensor]:
        """The states of torch's generators."""
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def set(self, states: Sequence[Tensor], others: Any = None) -> None:
        """Go on from these states."""
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])

    def finish(self) -> bool:
        """The first half is over. Returns whether it drew any random number."""
        self.end, self.others_end = self.now(), (random.getstate(), np.random.get_state())
        python, numbers = self.others
        return (
            any(not torch.equal(a, b) for a, b in zip(self.before, self.end, strict=True))
            or python != self.others_end[0]
            or any(np.any(a != b) for a, b in zip(numbers, self.others_end[1], strict=True))
        )


@dataclass
class Stream:
    """What arrived at the entrance, and what the second half needs beside it.

    Attributes:
        batch: number of examples.
        inputs: the network's own (args, kwargs).
        places: which of all these tensors carry the batch.
        entrance: name of the module that it arrived at.
        arrived: that module's (args, kwargs).
        outputs: per prefix module, the outputs of its calls, of which only shapes matter.
        dice: the random numbers of the first half; ``None`` if it drew none.
    """

    batch: int
    inputs: Any
    places: Places
    entrance: str = ""
    arrived: Any = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    dice: Dice | None = None

    @property
    def sort(self) -> tuple[str, ...]:
        """What kinds of things arrived: the data may decide whether there is a mask among them."""
        return tuple([type(leaf).__name__ for leaf in leaves_of(self.arrived)])

    def carried(self) -> list[Tensor]:
        """The tensors that differ between examples: what to keep to continue from here later.

        Each has the examples as its first axis. Floating inputs of the network are not among them;
        only their shape is needed again.
        """
        inputs = with_roles(self.inputs, self.places.inputs)
        kept = [pair for pair in inputs if not pair[0].is_floating_point()]
        both = (*kept, *with_roles(self.arrived, self.places.arrived))
        return [first(x, role, self.batch) for x, role in both if role is not None]

    def with_carried(self, tensors: Sequence[Tensor]) -> Stream:
        """The same stream for other examples, given what `carried` returned for them."""
        batch, rest = tensors[0].shape[0], iter(tensors)

        def shape_only(x: Tensor, role: Role) -> Tensor:
            return x if role is None else placeholder(x, role, batch, self.batch)

        def exchange(x: Tensor, role: Role) -> Tensor:
            return x if role is None else back(next(rest), x, role, self.batch)

        def inputs(x: Tensor, role: Role) -> Tensor:
            return shape_only(x, role) if x.is_floating_point() else exchange(x, role)

        return Stream(
            batch,
            map_roles(inputs, self.inputs, self.places.inputs),
            self.places,
            self.entrance,
            map_roles(exchange, self.arrived, self.places.arrived),
            {
                name: [
                    map_roles(shape_only, call, self.places.of(name, number))
                    for number, call in enumerate(calls)
                ]
                for name, calls in self.outputs.items()
            },
        )

    def some(self, rows: Tensor) -> Stream:
        """The same stream for some of its examples."""
        batch = len(rows)

        def pick(x: Tensor, role: Role) -> Tensor:
            return examples(x, role, rows.to(x.device), self.batch)

        return Stream(
            batch,
            map_roles(pick, self.inputs, self.places.inputs),
            self.places,
            self.entrance,
            map_roles(pick, self.arrived, self.places.arrived),
            {
                name: [
                    map_roles(pick, call, self.places.of(name, number))
                    for number, call in enumerate(calls)
                ]
                for name, calls in self.outputs.items()
            },
        )

    def again(self) -> Stream:
        """The same stream for one more pass: a pass fills the key-value cache that it is given."""
        memo = {id(x): x for x in tensors_of(self.arrived)}
        return dataclasses.replace(self, arrived=copy.deepcopy(self.arrived, memo))


class _ArrivedError(Exception):
    """Stops the first half at the entrance."""


class Turns:
    """A lock that is not copied: passes that patch modules take turns, threads or not."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self.lock.release()


class SharedPrefix:
    """Runs the two halves for one network.

    Hooks and patches last for one half and concern that half alone: whoever else runs the network
    meanwhile passes through them.

    Args:
        network: with its particle layers in place.
        axis: their axis.
        entrances: names of the modules at which the axis may open; the first to run does.
        turns: taken for as long as modules are patched.
    """

    def __init__(
        self, network: nn.Module, axis: ParticleAxis, entrances: tuple[str, ...], turns: Turns
    ):
        self.network = network
        self.axis = axis
        self.entrances = entrances
        self.turns = turns

    def run(self, args: tuple, kwargs: dict, batch: int, places: Places) -> Stream:
        """The first half: up to the entrance, on the plain batch.

        Args:
            args: of the network.
            kwargs: of the network.
            batch: number of examples.
            places: what a proof found; with no entrance in it, all modules are looked at.

        Raises:
            BellaError: no entrance ran.
        """
        network, axis = self.network, self.axis
        stream = Stream(batch, (args, kwargs), places)
        finished: dict[str, list[Any]] = {}
        trains = torch.is_grad_enabled() and network.training
        one = Pass(axis.chosen[:1], batch, trains=trains)
        watched = (
            {name: network.get_submodule(name) for name in places.outputs}
            if places.entrance
            else dict(network.named_modules())
        )
        device = next(iter(network.parameters()), torch.empty(0)).device
        dice = Dice(device) if network.training else None

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                if axis.is_this(one):
                    calls = finished.setdefault(name, [])
                    calls.append(output)
                    if dice is not None:
                        dice.after[name, len(calls) - 1] = dice.now()

            return hook

        def hold(name: str) -> Any:
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                if axis.is_this(one):
                    stream.entrance, stream.arrived = name, (args, kwargs)
                    raise _ArrivedError

            return hook

        with self.turns, ExitStack() as hooks:
            for name, module in watched.items():
                hooks.enter_context(_removed(module.register_forward_hook(keep(name))))
            for name in self.entrances:
                hooks.enter_context(self._entrance(name, hold(name)))
            try:
                with axis.run(one):
                    args, kwargs = fresh((args, kwargs))
                    network(*args, **kwargs)
            except _ArrivedError:
                pass
        if not stream.entrance:
            raise BellaError(f"None of {', '.join(self.entrances)} ran in this pass.")
        if dice is not None and dice.finish():
            stream.dice = dice
        names = places.outputs or [name for name in finished if not _inside(name, finished)]
        stream.outputs = {name: finished[name] for name in names if name in finished}
        return stream

    def resume(self, stream: Stream, one: Pass, fill: float = math.nan) -> Any:
        """The second half: from the entrance on, for every particle of a pass.

        Args:
            stream: what the first half held.
            one: the pass, of ``stream.batch`` examples, not yet open.
            fill: value of floating placeholders.

        Returns:
            The network's outputs, folded.
        """
        axis, places, dice = self.axis, stream.places, stream.dice
        width = len(one.chosen)
        entered = False

        def folded(x: Tensor, role: Role) -> Tensor:
            if role is None:
                return x
            if x.is_floating_point():
                return placeholder(x, role, width * stream.batch, stream.batch, fill)
            return axis.repeat(x, role)

        def handed(x: Tensor, role: Role) -> Tensor:
            if width == 1:
                return x.clone()  # a block may work in place on what it is given
            return x if role is None else axis.repeat(x, role)

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            nonlocal entered
            if entered or not axis.is_this(one):
                return None
            entered = True
            if dice is not None:
                dice.set(dice.end, dice.others_end)
            if isinstance(module, ParticleLayer) and width > 1:
                return stream.arrived  # it shares its base's product, then opens the axis
            one.is_open = True
            return map_roles(handed, stream.arrived, places.arrived)

        def answering(name: str) -> Any:
            module = self.network.get_submodule(name)
            forward, calls = module.forward, stream.outputs[name]
            number = 0

            def answer(*args: Any, **kwargs: Any) -> Any:
                nonlocal number
                if entered or not axis.is_this(one) or number >= len(calls):
                    return forward(*args, **kwargs)
                number += 1
                if dice is not None:
                    dice.set(dice.after[name, number - 1])
                return map_roles(
                    lambda x, role: (
                        x
                        if role is None
                        else placeholder(x, role, width * stream.batch, stream.batch, fill)
                    ),
                    calls[number - 1],
                    places.of(name, number - 1),
                )

            return exchanged(module, "forward", answer)

        with self.turns, ExitStack() as patches, axis.run(one):
            for name in stream.outputs:
                patches.enter_context(answering(name))
            patches.enter_context(self._entrance(stream.entrance, enter))
            args, kwargs = fresh(map_roles(folded, stream.inputs, places.inputs))
            if dice is not None:
                dice.set(dice.before, dice.others)
            return self.network(*args, **kwargs)

    def _entrance(self, name: str, hook: Any) -> Any:
        module = self.network.get_submodule(name)
        return _removed(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))


def places_of(one: Stream, other: Stream, kind: Any) -> Places:
    """What two first halves on other numbers of examples show about a kind of pass.

    Raises:
        MixedError: a tensor that is carried follows the batch in no simple way.
    """
    if one.entrance != other.entrance or one.outputs.keys() != other.outputs.keys():
        raise MixedError("other layers run for another number of examples")
    sizes = one.batch, other.batch
    outputs = {}
    for name, calls in one.outputs.items():
        pairs = zip(calls, other.outputs[name], strict=True)
        outputs[name] = [roles_of(a, b, *sizes) for a, b in pairs]
    return Places(
        kind,
        one.places.inputs,
        single=one.batch == 1,
        entrance=one.entrance,
        arrived=roles_of(one.arrived, other.arrived, *sizes),
        outputs=outputs,
    )


@contextmanager
def exchanged(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Inside the block the module itself has this attribute, which is no parameter or module."""
    own, before = vars(module), dict(vars(module))
    own[name] = value
    try:
        yield
    finally:
        own.pop(name)
        if name in before:
            own[name] = before[name]


def placeholder(
    like: Tensor, role: int, rows: int, batch: int = 1, fill: float = math.nan
) -> Tensor:
    """A tensor of ``like``'s shape but for ``rows`` examples instead of ``batch``, along the axis
    ``role``. It takes no memory: NaN everywhere, or 0 if integer."""
    value = like.new_full((), fill if like.is_floating_point() else 0)
    shape = list(like.shape)
    shape[role] = shape[role] // batch * rows
    return value.expand(shape)


def first(x: Tensor, role: int, batch: int) -> Tensor:
    """The tensor with its examples on the first axis."""
    each = x.shape[role] // batch
    if each == 1:
        return x if role == 0 else x.movedim(role, 0)
    return x.unflatten(role, (batch, each)).movedim(role, 0)


def back(x: Tensor, like: Tensor, role: int, batch: int) -> Tensor:
    """What `first` was given, from what it made of ``like`` or of other examples."""
    each = like.shape[role] // batch
    if each == 1:
        return x if role == 0 else x.movedim(0, role)
    return x.movedim(0, role).flatten(role, role + 1)


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _inside(name: str, others: dict[str, Any]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:depth]) in others for depth in range(1, len(parts)))
