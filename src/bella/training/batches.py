"""Batches of an epoch: from a loader as it was given, or an order of its own for each particle."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bella.errors import BellaError
from bella.inputs import split
from bella.particles.stream import Stream
from bella.training.randomness import own_randomness, seed_all
from bella.training.samplers import has_generators, in_fixed_order, parts_of


def for_training(loader: Any) -> Any:
    """The loader with workers that start anew each epoch, from that epoch's seed.

    Persistent workers go on from the random state of the epoch before, which a resumed run does
    not have. Sampler, batch sampler, data set and everything else are the loader's own, and its
    own persistent workers are left to it.
    """
    if isinstance(loader, DataLoader) and loader.num_workers and loader.persistent_workers:
        view = copy.copy(loader)
        vars(view).update(persistent_workers=False, _iterator=None)
        return view
    return loader


def first_of(loader: Any) -> Any:
    """A batch to look at before training; ``None`` of what can be gone through only once.

    Random numbers are afterwards as they were, those of generators that the loader holds too.
    """
    parts = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    held = [getattr(part, "generator", None) for part in parts]
    states = [(g, g.get_state()) for g in held if isinstance(g, torch.Generator)]
    with own_randomness():
        batches = iter(loader)
        if batches is loader:
            return None
        try:
            return next(batches, None)
        finally:
            for generator, state in states:
                generator.set_state(state)


def batches_per_epoch(loader: Any) -> int:
    """How many batches a loader gives.

    Raises:
        BellaError: it does not know, or it gives none.
    """
    try:
        count = len(loader)
    except (TypeError, NotImplementedError, AttributeError):
        raise BellaError(
            "The training data have no length, and the schedule and N need one: give the stream a "
            "__len__ (examples an epoch), or the loader or its sampler one, or make a list of it."
        ) from None
    if count < 1:
        cause = ": it drops the last batch, and no other is full" if _drops_last(loader) else ""
        raise BellaError(
            f"The training loader gives no batch{cause}: give more examples, a smaller batch_size "
            "or drop_last=False."
        )
    return count


def _drops_last(loader: Any) -> bool:
    return any(
        getattr(owner, "drop_last", False)
        for owner in (loader, getattr(loader, "batch_sampler", None))
    )


def grouped(batches: Iterable[Any], size: int, expected: int) -> Iterator[list[Any]]:
    """Lists of ``size`` batches; the last may be smaller.

    An epoch has as many batches as the loader said, so that a stream without an end can be one.

    Args:
        batches: of one epoch.
        size: batches a step.
        expected: how many batches the loader said that it has.

    Raises:
        BellaError: there is no batch.
    """
    iterator = iter(batches)
    group: list[Any] = []
    number = 0
    for number, batch in enumerate(itertools.islice(iterator, expected), start=1):  # noqa: B007
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
    if number == 0:
        raise BellaError(
            f"The training loader said that it has {expected} batches and gave none: can it be "
            "read only once? Give a data set, or a loader that begins anew for every epoch."
        )
    said = f"The training loader said that it has {expected} batches"
    if number < expected:
        warnings.warn(
            f"{said} and gave {number}: the learning rate goes by what it said.", stacklevel=2
        )
    elif next(iterator, None) is not None:
        warnings.warn(f"{said} and has more: an epoch ends after {expected}.", stacklevel=2)


def own_batches(loader: Any, particles: int) -> Iterator[Any]:
    """Batches with a leading particle axis: each particle goes through the loader by itself.

    The loader's sampler draws anew for each particle, so its weights, subsets and replacement hold
    for each. Workers are those of so many loaders.

    Raises:
        BellaError: the loader has a fixed order, gives the particles batches of different shapes
            or numbers, or can be read only once.
    """
    if isinstance(loader, DataLoader) and in_fixed_order(loader):
        raise BellaError(
            "minibatches='own' lets each particle go through the data in an order of its own, and "
            "this loader has one order: give it shuffle=True or a random sampler, or share the "
            "minibatches."
        )
    orders = [iter(loader) for _ in range(particles)]
    if len({id(order) for order in orders}) < particles:
        raise BellaError(
            "minibatches='own' reads the loader once for each particle at the same time, and this "
            "one can be read only once at a time: give a DataLoader, or share the minibatches."
        )
    try:
        for batches in zip(*orders, strict=True):
            yield stack(batches)
    except ValueError as error:
        if isinstance(error, BellaError):
            raise
        if "zip()" not in str(error):
            raise
        raise BellaError(
            "minibatches='own' needs as many batches for each particle, and the loader gave one "
            "more than another: use a batch sampler of fixed length, or share the minibatches."
        ) from None


def stack(trees: Sequence[Any]) -> Any:
    """Stack equal trees of tensors along a new first axis.

    Raises:
        BellaError: tensors of different shapes, or something other than tensors that is not the
            same in all of them.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        shapes = {tuple(tree.shape) for tree in trees}
        if len(shapes) > 1:
            raise BellaError(
                f"minibatches='own' stacks one batch of each particle, and they have the shapes "
                f"{' and '.join(map(str, sorted(shapes)))}: pad all to one length and keep one "
                "batch size, or share the minibatches."
            )
        return torch.stack(list(trees))
    if isinstance(first, Mapping):
        return {key: stack([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple | list):
        columns = [stack(column) for column in zip(*trees, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    plain = first is None or isinstance(first, bool | int | float | str)
    if not plain or any(tree != first for tree in trees):
        raise BellaError(
            f"minibatches='own' stacks tensors, and the batches hold a {type(first).__name__}: "
            "collate them into tensors, without a cached prefix."
        )
    return first


def examples_of(batch: Any) -> Any:
    """The inputs of a batch; of a stream what differs between examples, not its placeholders."""
    args, kwargs, _ = split(batch)
    return args[0].carried() if args and isinstance(args[0], Stream) else (args, kwargs)


# ------------------------------------------------------------ one seed


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch: all randomness of an epoch follows from it, so that a run can be
    resumed at any epoch without a saved generator."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % 2**63


def begin_epoch(loader: Any, seed: int, epoch: int) -> None:
    """Seed what an epoch draws from: torch, NumPy and Python's ``random``.

    Workers seed all three from torch's. Samplers and data sets that are told their epoch
    (``set_epoch``: ``DistributedSampler``, streams of the hub) are told it.
    """
    seed_all(epoch_seed(seed, epoch))
    for part in parts_of(loader):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def warn_of_generators(loader: Any) -> None:
    """Say of a resumed run that its loader draws from a generator that no checkpoint holds."""
    if has_generators(loader):
        warnings.warn(
            "The training loader draws from a generator of its own, which the checkpoint does not "
            "hold: the resumed run sees other batches than the stopped one would have. Leave out "
            "generator= and fit's seed decides them.",
            stacklevel=3,
        )
