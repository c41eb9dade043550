"""The shared prefix: what comes before the first particle layer runs once for all particles.

A pass has two halves. The first runs the network on the plain batch up to an *entrance* and stops
there, holding what arrived. The second runs the network on particles x batch rows, except that
modules of the prefix answer with placeholders of the right shape and the entrance takes what was
held, folded. So all code after the entrance, and all code of the network around its blocks, sees
one consistent number of rows: masks, reshapes and index arithmetic need no special case.

What was held (`Stream`) may also be kept for a whole data set: then training costs only the layers
after the entrance.

Placeholders are NaN. A network that carries something past the entrance, outside the entrance's
own arguments, shows NaN in its output, or, where it compares instead of computing, another output
for another value of the placeholders. The posterior tries both in its first pass, and opens the
axis at the inputs of such a network.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis
from bella.particles.layer import ParticleLayer
from bella.trees import map_tensors, tensors_of


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


@dataclass
class Stream:
    """What arrived at the entrance, and what the second half needs beside it.

    Attributes:
        batch: number of examples.
        inputs: the network's own (args, kwargs).
        entrance: name of the module that it arrived at.
        arrived: that module's (args, kwargs).
        outputs: per prefix module, the outputs of its calls, of which only shapes matter.
    """

    batch: int
    inputs: Any
    entrance: str = ""
    arrived: Any = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    def carried(self) -> list[Tensor]:
        """The tensors that differ between examples: what to keep to continue from here later.

        Floating inputs of the network are not among them; only their shape is needed again.
        """
        kept = [x for x in tensors_of(self.inputs) if not x.is_floating_point()]
        return [x for x in (*kept, *tensors_of(self.arrived)) if self.per_example(x)]

    def with_carried(self, tensors: Sequence[Tensor]) -> Stream:
        """The same stream for other examples, given what `carried` returned for them."""
        batch, rest = tensors[0].shape[0], iter(tensors)

        def shape_only(x: Tensor) -> Tensor:
            return placeholder(x, batch) if self.per_example(x) else x

        def exchange(x: Tensor) -> Tensor:
            return next(rest) if self.per_example(x) else x

        return Stream(
            batch,
            map_tensors(
                lambda x: shape_only(x) if x.is_floating_point() else exchange(x), self.inputs
            ),
            self.entrance,
            map_tensors(exchange, self.arrived),
            {name: map_tensors(shape_only, calls) for name, calls in self.outputs.items()},
        )

    def again(self) -> Stream:
        """The same stream for one more pass: a pass fills the key-value cache that it is given."""
        memo = {id(x): x for x in tensors_of(self.arrived)}
        return dataclasses.replace(self, arrived=copy.deepcopy(self.arrived, memo))

    def per_example(self, x: Tensor) -> bool:
        """Whether ``x`` has one row for each example."""
        return x.dim() > 0 and x.shape[0] == self.batch


class _ArrivedError(Exception):
    """Stops the first half at the entrance."""


class SharedPrefix:
    """Runs the two halves for one network.

    Args:
        network: with its particle layers in place.
        axis: their axis.
        entrances: names of the modules at which the axis may open; the first to run does.
    """

    def __init__(self, network: nn.Module, axis: ParticleAxis, entrances: tuple[str, ...]):
        self.network = network
        self.axis = axis
        self.entrances = entrances
        self.fill = math.nan
        self.modules: dict[str, nn.Module] | None = None  # of the prefix; found by the first pass

    def run(self, args: tuple, kwargs: dict, batch: int) -> Stream:
        """The first half: up to the entrance, on the plain batch."""
        stream = Stream(batch, (args, kwargs))
        finished: dict[str, list[Any]] = {}
        watched = dict(self.network.named_modules()) if self.modules is None else self.modules
        with ExitStack() as hooks:
            for name, module in watched.items():
                hooks.enter_context(_removed(module.register_forward_hook(_keep(finished, name))))
            for name in self.entrances:
                hooks.enter_context(self._entrance(name, _hold(stream, name)))
            try:
                with self.axis.running(batch):
                    self.network(*args, **kwargs)
            except _ArrivedError:
                pass
        if not stream.entrance:
            raise BellaError(f"None of {', '.join(self.entrances)} ran in this pass.")
        if self.modules is None:
            outermost = [name for name in finished if not _inside(name, finished)]
            self.modules = {name: watched[name] for name in outermost}
        stream.outputs = {name: finished[name] for name in self.modules if name in finished}
        return stream

    def resume(self, stream: Stream) -> Any:
        """The second half: from the entrance on, for every running particle."""
        axis = self.axis
        rows = axis.width * stream.batch

        def folded(x: Tensor) -> Tensor:
            if x.is_floating_point() and stream.per_example(x):
                return placeholder(x, rows, self.fill)
            return axis.repeat(x)

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            if axis.is_open:
                return None
            if isinstance(module, ParticleLayer):  # shares its base's product, then opens the axis
                return stream.arrived
            axis.is_open = True
            return map_tensors(axis.repeat, stream.arrived)

        with ExitStack() as patches, axis.running(stream.batch):
            for name, calls in stream.outputs.items():
                module = self.network.get_submodule(name)
                patches.enter_context(self._answering(module, iter(calls), stream))
            patches.enter_context(self._entrance(stream.entrance, enter))
            args, kwargs = map_tensors(folded, stream.inputs)
            return self.network(*args, **kwargs)

    @torch.no_grad()
    def reads_placeholders(self, stream: Stream) -> bool:
        """Whether the second half's outputs depend on what the prefix's modules answer."""
        found = []
        try:
            for self.fill in (math.nan, 1e4, -1e4):
                with torch.random.fork_rng():
                    torch.manual_seed(0)  # the same dropout each time
                    found.append(tensors_of(self.resume(stream.again())))
        finally:
            self.fill = math.nan
        first, *others = ([x for x in outputs if x.is_floating_point()] for outputs in found)
        return any(
            not torch.allclose(x, y, rtol=1e-3, atol=1e-3 * float(x.abs().max()), equal_nan=True)
            for other in others
            for x, y in zip(first, other, strict=True)
        )

    def _entrance(self, name: str, hook: Any) -> Any:
        module = self.network.get_submodule(name)
        return _removed(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))

    @contextmanager
    def _answering(self, module: nn.Module, calls: Iterator[Any], stream: Stream) -> Iterator[None]:
        """Until the axis opens, ``module`` answers with placeholders instead of running."""
        axis, forward = self.axis, module.forward

        def answer(*args: Any, **kwargs: Any) -> Any:
            if axis.is_open or (output := next(calls, None)) is None:
                return forward(*args, **kwargs)
            return map_tensors(
                lambda x: (
                    placeholder(x, axis.width * stream.batch, self.fill)
                    if stream.per_example(x)
                    else x
                ),
                output,
            )

        with exchanged(module, "forward", answer):
            yield


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


def placeholder(like: Tensor, rows: int, fill: float = math.nan) -> Tensor:
    """A tensor of ``like``'s shape but ``rows`` rows that takes no memory: NaN, or 0 if integer."""
    value = like.new_full((), fill if like.is_floating_point() else 0)
    return value.expand(rows, *like.shape[1:])


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _hold(stream: Stream, name: str) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        stream.entrance, stream.arrived = name, (args, kwargs)
        raise _ArrivedError

    return hook


def _keep(finished: dict[str, list[Any]], name: str) -> Any:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        finished.setdefault(name, []).append(output)

    return hook


def _inside(name: str, others: dict[str, Any]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:depth]) in others for depth in range(1, len(parts)))
