"""The particle axis: how n networks that share a base run in one forward pass.

The axis is *folded* into the batch, particle-major: row ``i * batch + b`` belongs to particle
``i`` and example ``b``. Every untouched layer then works as it is; only particle layers ask this
object to which particle a row belongs.

What comes before the first particle layer is the same for all particles and runs once, on
``batch`` rows, until the axis *opens* (see `bella.particles.prefix`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.trees import map_tensors


class ParticleAxis:
    """The state of one forward pass: which particles run, on how many rows, and since where.

    Attributes:
        particles: number of particles of the posterior.
        chosen: the particles that run now, ascending or in the order asked for.
        batch: examples in this pass; 0 when none is running.
        is_open: whether rows carry the particle axis from here on.
    """

    def __init__(self, particles: int):
        if not isinstance(particles, int) or particles < 1:
            raise BellaError(
                f"The number of particles is {particles!r}: give a whole number of at least 1."
            )
        self.particles = particles
        self.chosen: tuple[int, ...] = tuple(range(particles))
        self.batch = 0
        self.is_open = False

    @property
    def width(self) -> int:
        """Number of particles that run now."""
        return len(self.chosen)

    # ---------------------------------------------------------------- which particles

    @contextmanager
    def subset(self, particles: Sequence[int]) -> Iterator[None]:
        """Only these particles run inside the ``with`` block.

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
        before, self.chosen = self.chosen, chosen
        try:
            yield
        finally:
            self.chosen = before

    def select(self, stacked: Tensor) -> Tensor:
        """The running particles' part of a stacked parameter (particles, ...)."""
        first, count = self.chosen[0], self.width
        if count == self.particles and self.chosen == tuple(range(count)):
            return stacked
        if self.chosen == tuple(range(first, first + count)):
            return stacked[first : first + count]
        return stacked[torch.tensor(self.chosen, device=stacked.device)]

    # ---------------------------------------------------------------- one pass

    @contextmanager
    def running(self, batch: int, *, is_open: bool = False) -> Iterator[None]:
        """One forward pass over ``batch`` examples."""
        self.batch, self.is_open = batch, is_open
        try:
            yield
        finally:
            self.batch, self.is_open = 0, False

    def carries_particles(self, x: Tensor) -> bool:
        """Whether the rows of ``x`` belong to particles (else they are shared by all of them).

        Raises:
            BellaError: no pass is running, or the first axis of ``x`` is not the batch.
        """
        if not self.batch:
            raise BellaError(
                "A layer of this network has particles, so the network cannot be called by "
                "itself: call the posterior, or posterior.particle(i) for a plain network; where "
                "the network checkpoints activations in its own way, use bella.checkpoint instead."
            )
        if not self.is_open or (x.shape[0] == self.batch and self.width > 1):
            return False
        if x.shape[0] % (self.width * self.batch):
            raise BellaError(
                f"A layer with particles met {x.shape[0]} rows where {self.width} particles x "
                f"{self.batch} examples (or a multiple) were expected: its inputs must have the "
                "batch as their first axis."
            )
        return True

    def repeat(self, x: Tensor) -> Tensor:
        """A tensor that carries the batch, repeated for each particle; another one as it is."""
        if self.width == 1 or x.dim() == 0 or x.shape[0] != self.batch:
            return x
        return x.expand(self.width, *x.shape).reshape(-1, *x.shape[1:])

    def unfold(self, tree: Any, batch: int) -> Any:
        """Give every tensor of the outputs its particle axis: (particles, batch, ...).

        Raises:
            BellaError: an output has ``batch`` rows although several particles ran.
        """
        rows = self.width * batch

        def split(x: Tensor) -> Tensor:
            if x.dim() == 0:
                return x
            if x.shape[0] != rows:
                raise BellaError(
                    f"An output has {x.shape[0]} rows where {self.width} particles x "
                    f"{batch} examples were expected: pass shared_prefix=False, and do not "
                    "pass labels to the network (use bella.nll on its outputs)."
                )
            return x.reshape(self.width, batch, *x.shape[1:])

        return map_tensors(split, tree)
