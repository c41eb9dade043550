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
finds that out. If it is what one module answered (the features that a network which sees and reads
returns beside its logits), that module answers with its own tensors; else nothing is shared.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError, nearest
from bella.particles.axis import ParticleAxis, Pass
from bella.particles.layer import ParticleLayer
from bella.particles.roles import Role, map_roles
from bella.particles.stream import Dice, Places, Stream, others_now, placeholder
from bella.trees import fresh, map_tensors


class NothingSharedError(BellaError):
    """There is no prefix that particles share."""

    def __init__(self) -> None:
        super().__init__("This posterior opens its particle axis at the inputs: no prefix.")


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


def entrances_of(
    network: nn.Module, layers: Iterable[str], shared_prefix: bool | str
) -> tuple[str, ...]:
    """The modules at which the axis may open: the one that is named, or those of the layers.

    Args:
        network: with its particle layers in place.
        layers: names of these.
        shared_prefix: see `bella.posterior.Posterior`.

    Raises:
        BellaError: ``shared_prefix`` is a name and names no module.
    """
    check_prefix(network, shared_prefix)
    if isinstance(shared_prefix, str):
        return (shared_prefix,)
    return tuple(dict.fromkeys(entrance_of(network, name) for name in layers))


def check_prefix(network: nn.Module, shared_prefix: bool | str) -> None:
    """Refuse a place for the particle axis to open that the network does not have.

    Raises:
        BellaError: ``shared_prefix`` is a name and names no module.
    """
    names = dict(network.named_modules())
    if isinstance(shared_prefix, str) and shared_prefix not in names:
        raise BellaError(
            f"shared_prefix={shared_prefix!r} names no module of the network: near names are "
            f"{nearest(shared_prefix, names, count=5)}."
        )


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
        device = next(iter(network.parameters()), torch.empty(0)).device
        stream = Stream(batch, (args, kwargs), places, autocast=autocast_on(device))
        finished: dict[str, list[Any]] = {}
        trains = torch.is_grad_enabled() and network.training
        one = Pass(axis.asked[:1], batch, trains=trains)
        watched = (
            {name: network.get_submodule(name) for name in places.outputs}
            if places.entrance
            else dict(network.named_modules())
        )
        dice = Dice(device, places.draws_others) if network.training else None

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                if axis.is_this(one):
                    calls = finished.setdefault(name, [])
                    # Copied, for the network may put something else into what it was given.
                    calls.append(map_tensors(lambda x: x, output))
                    if dice is not None and places.draws:
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
        if dice is not None and dice.fell() and not places.draws:
            places.draws = True  # from now on it is noted after which module which number came
            dice.set(dice.before)
            return self.run(args, kwargs, batch, places)
        if places.draws or places.draws_others:
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
        like = next((p for p in self.network.parameters() if p.is_floating_point()), torch.empty(0))
        stream = stream.going_on_in(autocast_on(like.device), like.dtype).readable()
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

        def shaped(x: Tensor, role: Role) -> Tensor:
            if role is None:
                return x
            return placeholder(x, role, width * stream.batch, stream.batch, fill)

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            nonlocal entered
            if entered or not axis.is_this(one):
                return None
            entered = True
            if dice is not None:
                dice.set(onward, onward_others)
            if isinstance(module, ParticleLayer) and width > 1:
                return stream.arrived  # it shares its base's product, then opens the axis
            one.is_open = True
            return map_roles(handed, stream.arrived, places.arrived)

        def answering(name: str) -> Any:
            module = self.network.get_submodule(name)
            # The whole call and not its forward: the caller's hooks ran in the first half, on what
            # the module made, and what is held has passed them.
            compiled = module._compiled_call_impl is not None
            place = "_compiled_call_impl" if compiled else "_call_impl"
            run, calls = getattr(module, place), stream.outputs[name]
            number = 0

            def answer(*args: Any, **kwargs: Any) -> Any:
                nonlocal number
                if entered or not axis.is_this(one) or number >= len(calls):
                    return run(*args, **kwargs)
                number += 1
                if dice is not None:
                    dice.set(dice.after[name, number - 1])
                return map_roles(
                    handed if name == places.real else shaped,
                    calls[number - 1],
                    places.of(name, number - 1),
                )

            return exchanged(module, place, answer)

        if dice is not None:  # what comes after the entrance draws on from here
            onward, onward_others = dice.now(), others_now() if dice.others else None
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


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _inside(name: str, others: dict[str, Any]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:depth]) in others for depth in range(1, len(parts)))


def autocast_on(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on a device now."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None
