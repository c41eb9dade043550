"""The particle axis: how n networks that share a base run in one forward pass.

The axis is *folded* into the batch, particle-major: row ``i * batch + b`` belongs to particle
``i`` and example ``b``. Every untouched layer then works as it is; only particle layers ask this
object whose rows they hold.

A pass is a value, not a state: who runs, on how many examples, since where, stands in a `Pass`.
Each thread has its own, so calls of several threads, nested calls and exceptions cannot mix two of
them; what runs again in backward, maybe in another thread, carries its own (see
`bella.particles.recompute`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.particles.attended import attending
from bella.particles.roles import Layer


class IdleError(BellaError):
    """No layer with particles ran."""


class UnprovenError(BellaError):
    """A pass met something that its kind was not proven for; the looped passes are right."""


class Pass:
    """One forward pass.

    Args:
        chosen: the particles that run.
        batch: its examples.
        is_open: whether rows carry the particle axis from here on.
        layers: what each particle layer's rows are, by the layer's name; empty where a pass of one
            particle needs no answer.
        values: other values of stacked parameters, by their ``id``: what a proof runs with.
        variants: for each running particle, which of those values.
        trains: whether gradients are wanted.
    """

    __slots__ = ("batch", "chosen", "is_open", "layers", "trains", "values", "variants")

    def __init__(
        self,
        chosen: tuple[int, ...],
        batch: int,
        *,
        is_open: bool = False,
        layers: Mapping[str, Layer] | None = None,
        values: Mapping[int, Tensor] | None = None,
        variants: tuple[int, ...] = (),
        trains: bool = False,
    ):
        self.chosen = chosen
        self.batch = batch
        self.is_open = is_open
        self.layers = {} if layers is None else layers
        self.values = values
        self.variants = variants
        self.trains = trains

    def copy(self) -> Pass:
        """The same pass as it is now."""
        return copy.copy(self)


class _Local(threading.local):
    """What belongs to one thread: the pass that runs, and the particles that it chose."""

    def __init__(self) -> None:  # once for each thread; what a class holds torch.compile misses
        self.running: Pass | None = None
        self.chosen: tuple[int, ...] | None = None
        self.own_inputs = False


class ParticleAxis:
    """The particles of one posterior, and the pass that the calling thread runs on them.

    Args:
        particles: number of particles of the posterior.

    Raises:
        BellaError: there are none.
    """

    def __init__(self, particles: int):
        if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
            raise BellaError(
                f"The number of particles is {particles!r}: give a whole number of at least 1."
            )
        self.resize(particles)
        self._local = _Local()

    def __getstate__(self) -> dict[str, Any]:
        return {"particles": self.particles, "everyone": self.everyone}  # no pass is copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = _Local()

    def resize(self, particles: int) -> None:
        """Have another number of particles from now on, as their stacked parameters do."""
        self.particles = particles
        self.everyone = tuple(range(particles))

    # ---------------------------------------------------------------- which particles

    @property
    def asked(self) -> tuple[int, ...]:
        """The particles that the next pass of this thread is to run."""
        return self.everyone if self._local.chosen is None else self._local.chosen

    @property
    def chosen(self) -> tuple[int, ...]:
        """The particles that run now, in the order asked for."""
        running = self._local.running
        return self.asked if running is None else running.chosen

    @property
    def width(self) -> int:
        """Number of particles that run now."""
        return len(self.chosen)

    @contextmanager
    def subset(self, particles: Sequence[int]) -> Iterator[None]:
        """Only these particles run inside the ``with`` block, in this thread.

        Raises:
            BellaError: an index is not one of the particles, is repeated, or none is given.
        """
        chosen = tuple(int(i) for i in particles)
        if not chosen or len(set(chosen)) < len(chosen):
            raise BellaError(f"A subset needs distinct particles and at least one, not {chosen}.")
        if min(chosen) < 0 or max(chosen) >= self.particles:
            raise BellaError(
                f"Particles {chosen} are not all among the {self.particles} of this posterior: "
                f"count from 0 to {self.particles - 1}."
            )
        before, self._local.chosen = self._local.chosen, chosen
        try:
            yield
        finally:
            self._local.chosen = before

    @property
    def own_inputs(self) -> bool:
        """Whether every particle has inputs of its own now."""
        return self._local.own_inputs

    @contextmanager
    def owning(self) -> Iterator[None]:
        """Inside the block, in this thread, every particle has inputs of its own."""
        before, self._local.own_inputs = self._local.own_inputs, True
        try:
            yield
        finally:
            self._local.own_inputs = before

    def select(self, stacked: Tensor) -> Tensor:
        """The running particles' part of a stacked parameter (particles, ...)."""
        running = self._local.running
        if running is not None and running.values is not None:
            other = running.values.get(id(stacked))
            if other is not None:
                return other[list(running.variants)]
        chosen = self.chosen
        first, count = chosen[0], len(chosen)
        if count == self.particles and chosen == self.everyone:
            return stacked
        if chosen == tuple(range(first, first + count)):
            return stacked[first : first + count]
        return stacked[torch.tensor(chosen, device=stacked.device)]

    # ---------------------------------------------------------------- one pass

    @property
    def running(self) -> Pass:
        """The pass that this thread runs.

        Raises:
            BellaError: none is running.
        """
        running = self._local.running
        if running is None:
            raise BellaError(
                "A layer of this network has particles, so the network cannot be called by "
                "itself: call the posterior, or posterior.particle(i) for a plain network; where "
                "the network checkpoints activations in its own way, use bella.recompute instead."
            )
        return running

    @property
    def is_running(self) -> bool:
        """Whether this thread runs a pass."""
        return self._local.running is not None

    @contextmanager
    def run(self, one: Pass | None) -> Iterator[None]:
        """Inside the block this thread runs ``one`` pass; the one before goes on afterwards."""
        before, self._local.running = self._local.running, one
        try:
            with attending():
                yield
        finally:
            self._local.running = before

    def is_this(self, one: Pass) -> bool:
        """Whether this thread runs just that pass."""
        return self._local.running is one

    @property
    def batch(self) -> int:
        """Examples in the pass that runs; 0 where none does."""
        running = self._local.running
        return 0 if running is None else running.batch

    @property
    def is_open(self) -> bool:
        """Whether rows carry the particle axis now."""
        running = self._local.running
        return running is not None and running.is_open

    @is_open.setter
    def is_open(self, value: bool) -> None:
        self.running.is_open = value

    def carries_particles(self, x: Tensor) -> bool:
        """Whether the rows of ``x`` belong to particles (else they are shared by all of them).

        Where one particle runs, every row is its own, whatever the network made of the batch.

        Raises:
            BellaError: no pass is running.
            UnprovenError: the first axis of ``x`` cannot be particles x batch.
        """
        running = self.running
        if running.trains and not torch.is_grad_enabled():
            raise BellaError(
                "A layer with particles runs without gradients inside a pass that trains, so its "
                "particles would never learn: checkpoint with use_reentrant=False, or better by "
                "bella.recompute, and take torch.no_grad out of the network."
            )
        width = len(running.chosen)
        if width == 1:
            return True
        if not running.is_open:
            return False
        if x.dim() == 0 or x.shape[0] % (width * running.batch):
            raise UnprovenError(
                f"a layer with particles met {x.shape[0] if x.dim() else 1} rows where {width} "
                f"particles x {running.batch} examples (or a multiple) were expected"
            )
        return True

    def layer(self, name: str) -> Layer | None:
        """What the rows of a particle layer are, where a proof found it out."""
        return self.running.layers.get(name)

    def repeat(self, x: Tensor, axis: int = 0) -> Tensor:
        """A tensor that carries the batch along an axis, repeated there for each particle.

        Always in memory of its own, which a network may write to: one example, expanded, would be
        one row under several names.
        """
        if self.width == 1:
            return x
        return x.repeat(*(self.width if i == axis % x.dim() else 1 for i in range(x.dim())))
