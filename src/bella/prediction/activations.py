"""Frozen activations: what the network that all particles began as makes of an example, at several
depths and pooled in several ways.

Training never moves them. They are read in one more pass, at Δ = 0, that goes on from the shared
prefix where there is one, so that what comes before the particles runs once for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError, nearest
from bella.kernels import device_of
from bella.particles.copies import Copies
from bella.particles.exact import exactly
from bella.particles.prefix import entrance_of
from bella.particles.roles import MixedError, role_of
from bella.particles.stream import Stream
from bella.posterior import Posterior
from bella.trees import tensors_of

DEPTHS = 6
"""So many places are looked at where nobody names any."""


@dataclass(frozen=True, order=True)
class Reading:
    """One way to read an example: what arrives at a module, pooled.

    Attributes:
        place: the module's name in the network.
        pooling: ``flat``: all numbers; ``mean``: over tokens (those that an attention mask keeps)
            or pixels; ``first`` and ``last``: of the tokens, such as the class token;
            ``mean-last``: over pixels where the channels come last.
    """

    place: str
    pooling: str

    def __str__(self) -> str:
        return f"{self.place}:{self.pooling}"

    @classmethod
    def parse(cls, text: str) -> Reading:
        """``"PLACE:POOLING"``.

        Raises:
            BellaError: it is not of that form.
        """
        place, colon, pooling = text.rpartition(":")
        if not colon or not place or pooling not in POOLINGS:
            raise BellaError(
                f"{text!r} is no reading of activations: give PLACE:POOLING with the name of a "
                f"module and one of {', '.join(POOLINGS)}."
            )
        return cls(place, pooling)


@dataclass(frozen=True)
class Place:
    """A module, and which tensor of what arrives there holds the examples.

    Attributes:
        name: of the module.
        leaf: number of the tensor among its arguments.
        role: the axis that carries the examples.
    """

    name: str
    leaf: int
    role: int

    def of(self, arrived: Any) -> Tensor:
        """That tensor, with the examples first."""
        tensors = tensors_of(arrived)
        if self.leaf >= len(tensors) or tensors[self.leaf].dim() <= self.role:
            raise BellaError(f"At {self.name} something else arrived than when it was looked at.")
        return tensors[self.leaf].movedim(self.role, 0)


# ------------------------------------------------------------ pooling


def pooled(x: Tensor, pooling: str, mask: Tensor | None = None) -> Tensor:
    """An activation (batch, ...) as features (batch, size).

    Args:
        x: the activation.
        pooling: see `Reading`.
        mask: (batch, tokens), 0 for tokens that are none.

    Raises:
        BellaError: there is no such pooling of an activation of this shape.
    """
    if mask is not None and mask.shape != x.shape[:2]:
        mask = None  # of tokens that are no more, in a network that merges them
    if pooling not in poolings_of(x, mask):
        raise BellaError(
            f"An activation of shape {tuple(x.shape)} has no pooling {pooling!r}: choose "
            f"{', '.join(poolings_of(x, mask))}."
        )
    return POOLINGS[pooling](x, mask).flatten(1)


def poolings_of(x: Tensor, mask: Tensor | None) -> tuple[str, ...]:
    """The poolings that an activation has, by its shape (batch, ...).

    Texts of several lengths have no flat form: padding would be read as if it said something.
    """
    if x.dim() == 3:
        masked = mask is not None and mask.shape == x.shape[:2]
        return ("mean", "first", "last") if masked else ("mean", "first", "last", "flat")
    return ("mean", "mean-last", "flat") if x.dim() == 4 else ("flat",)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if x.dim() == 4:
        return x.mean((2, 3))
    if mask is None:
        return x.mean(1)
    kept = mask.to(x).unsqueeze(-1)
    return (kept * x).sum(1) / kept.sum(1).clamp_min(1)


def _first(x: Tensor, mask: Tensor | None) -> Tensor:
    # Of texts that are padded in front the first token is not at position 0.
    return x[:, 0] if mask is None else _at(x, mask.bool().int().argmax(1))


def _last(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x[:, -1]
    return _at(x, x.shape[1] - 1 - mask.bool().int().flip(1).argmax(1))


def _at(x: Tensor, token: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device), token.to(x.device)]


POOLINGS = {
    "flat": lambda x, mask: x,
    "mean": _mean,
    "first": _first,
    "last": _last,
    "mean-last": lambda x, mask: x.mean((1, 2)),
}
"""From an activation (batch, ...) and a mask or none to features."""


def mask_of(network: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The attention mask (batch, tokens) among a network's inputs, or those of a stream."""
    if args and isinstance(args[0], Stream):
        args, kwargs = args[0].inputs
    if "attention_mask" not in kwargs and args:
        try:
            kwargs = inspect.signature(network.forward).bind_partial(*args, **kwargs).arguments
        except (TypeError, ValueError):
            return None
    mask = kwargs.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


# ------------------------------------------------------------ reading


class Reader:
    """Reads activations at some places of a posterior's frozen base.

    Args:
        posterior: whose base; see `Posterior.run_base`.
        places: where.
    """

    def __init__(self, posterior: Posterior, places: Iterable[Place]):
        self.posterior = posterior
        self.places = {place.name: place for place in places}

    def __call__(
        self, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], tuple, dict[str, Any]]:
        """What arrives at each place, (batch, ...), and the inputs with their prefix run.

        Args:
            args: of the network, or a stream.
            kwargs: of the network.

        Raises:
            BellaError: a place was not reached, because it lies before the stream or does not run;
                or see `Posterior.run_base`.
        """
        arrived, args, kwargs = arrivals(self.posterior, list(self.places), args, kwargs)
        for name in self.places:
            if name not in arrived:
                raise BellaError(
                    f"Nothing arrived at {name}: does it lie before the stream that was given, or "
                    "not run at all? Give the inputs themselves."
                )
        return {name: self.places[name].of(x) for name, x in arrived.items()}, args, kwargs

    def features(
        self, readings: Iterable[Reading], args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[Reading, Tensor], tuple, dict[str, Any]]:
        """Each reading's features (batch, size), and the inputs with their prefix run."""
        mask = mask_of(self.posterior.network, args, kwargs)
        found, args, kwargs = self(args, kwargs)
        return {r: pooled(found[r.place], r.pooling, mask) for r in readings}, args, kwargs


def arrivals(
    posterior: Posterior, names: Sequence[str], args: tuple, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], tuple, dict[str, Any]]:
    """The (args, kwargs) that first arrive at modules in a pass of the frozen base, with their
    gradients where the caller asks for such.

    Returns:
        Them by the modules' names, as far as they ran, and the inputs with their prefix run.
    """
    found: dict[str, Any] = {}
    streaming = bool(args) and isinstance(args[0], Stream)
    with posterior.passes.turns:
        if not streaming:
            posterior.plan_for(*args, **kwargs)  # a proof's passes are nobody's activations
            with _tapped(posterior, names, found, early=True):
                args, kwargs = posterior.begun(*args, **kwargs)
        with _tapped(posterior, names, found, early=False):
            posterior.run_base(*args, **kwargs)
    return found, args, kwargs


@contextmanager
def _tapped(
    posterior: Posterior, names: Sequence[str], found: dict[str, Any], *, early: bool
) -> Iterator[None]:
    """Inside the block what arrives at modules is kept: ``early`` in a first half, which is not
    open, else from the entrance on (before it, a second half runs on placeholders)."""
    axis = posterior.axis

    def tap(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if name not in found and axis.is_running and axis.is_open is not early:
                found[name] = [x.clone() for x in tensors_of((args, kwargs))]

        return hook

    with ExitStack() as handles:
        for name in names:
            module = posterior.network.get_submodule(name)
            handle = module.register_forward_pre_hook(tap(name), with_kwargs=True)
            handles.callback(handle.remove)
        yield


# ------------------------------------------------------------ where to read


@torch.no_grad()
def find_places(
    posterior: Posterior, args: tuple, kwargs: dict[str, Any], names: Sequence[str] | None = None
) -> dict[str, Place]:
    """Places whose activations have one row for each example, found by two passes.

    Args:
        posterior: whose base is read.
        args: inputs of at least two examples, or a stream of such.
        kwargs: named inputs.
        names: modules; ``None`` for a choice: among the blocks around the particles, from the first
            one on, and what arrives at the head.

    Raises:
        BellaError: a named module is not there or mixes the examples, examples cannot be told
            apart, or there is only one.
    """
    known = dict(posterior.network.named_modules())
    for name in names or ():
        if name not in known:
            raise BellaError(
                f"{name!r} is no module of the network: near names are {nearest(name, known)}."
            )
    wanted = blocks_of(posterior) if names is None else list(names)
    with exactly(device_of(posterior)):
        whole, *_ = arrivals(posterior, wanted, args, kwargs)
        batch, fewer = _fewer(posterior, args, kwargs)
        part, *_ = arrivals(posterior, wanted, *fewer)
    found: dict[str, Place] = {}
    for name, arrived in whole.items():
        place = _place(name, arrived, part.get(name), batch)
        if place is not None:
            found[name] = place
        elif names is not None:
            raise BellaError(f"What arrives at {name} has no row for each example: name another.")
    for name in names or ():
        if name not in found:
            raise BellaError(f"Nothing arrived at {name}: it lies before the stream, or is idle.")
    if names is not None:
        return found
    return _spread(_distinct(found, whole), [first_block(posterior), *_heads(posterior)])


def blocks_of(posterior: Posterior) -> list[str]:
    """Blocks that may be read: those that stand in a row with one around the first particles, in
    rows around rows (stages of blocks), and the heads."""
    network, first = posterior.network, first_block(posterior)
    names: list[str] = []
    parts = first.split(".")
    for depth in range(len(parts)):
        path = ".".join(parts[:depth])
        row = network.get_submodule(path)
        if isinstance(row, nn.ModuleList | nn.Sequential):
            names += [f"{path}.{child}" if path else child for child, _ in row.named_children()]
    return list(dict.fromkeys([*names, first, *_heads(posterior)]))


def first_block(posterior: Posterior) -> str:
    """The block that holds the first particles."""
    return entrance_of(posterior.network, next(iter(posterior.layers())))


def _heads(posterior: Posterior) -> list[str]:
    """Modules of which every particle has its own copy."""
    return [name for name, layer in posterior.layers().items() if isinstance(layer, Copies)]


def _fewer(posterior: Posterior, args: tuple, kwargs: dict[str, Any]) -> tuple[int, Any]:
    """The number of examples, and the inputs of all but the last one."""
    if args and isinstance(args[0], Stream):
        batch = args[0].batch
    else:
        plan = posterior.plan_for(*args, **kwargs)
        batch = posterior.passes.batch(plan, args, kwargs) if plan.inputs else 0
    some = posterior.some(args, kwargs, torch.arange(batch - 1)) if batch > 1 else None
    if some is None:
        raise BellaError(
            "Activations are read of examples that can be told apart, two or more in a batch: give "
            "larger batches, or leave out what reads them (anchors=(), distance=None)."
        )
    return batch, some


def _place(name: str, one: Sequence[Tensor], other: Any, batch: int) -> Place | None:
    """The first tensor of numbers that has one row for each example."""
    if other is None or len(one) != len(other):
        return None
    for leaf, (a, b) in enumerate(zip(one, other, strict=True)):
        try:
            role = role_of(a.shape, b.shape, batch, batch - 1)
        except MixedError:
            continue
        if role is not None and a.is_floating_point() and a.shape[role] == batch and a.dim() > 1:
            return Place(name, leaf, role)
    return None


def _distinct(found: Mapping[str, Place], arrived: Mapping[str, Any]) -> dict[str, Place]:
    """Places without those at which the same arrives as at one before, such as a stage and its
    first block."""
    kept: dict[str, Place] = {}
    for name, place in found.items():
        value = place.of(arrived[name])
        same = (kept[n].of(arrived[n]) for n in kept)
        if not any(x.shape == value.shape and torch.equal(x, value) for x in same):
            kept[name] = place
    return kept


def _spread(places: Mapping[str, Place], always: Sequence[str]) -> dict[str, Place]:
    """At most `DEPTHS` of them, evenly over the blocks, those that are ``always`` read among
    them."""
    rest = [name for name in places if name not in always]
    count = max(1, DEPTHS - sum(name in places for name in always))
    if len(rest) > count:
        step = len(rest) / count
        rest = [rest[int(step * (i + 0.5))] for i in range(count)]
    return {name: place for name, place in places.items() if name in rest or name in always}
