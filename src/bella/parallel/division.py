"""Particles divided among processes, and whole again where a file or a figure needs all of them.

A process's part is a posterior like any other: its stacked parameters have fewer rows, and nothing
that runs, clips or steps knows of the rest. What couples particles asks for it (`Group` in
`bella.transport.coupling`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bella.errors import BellaError
from bella.parallel.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from bella.posterior import Posterior

DIVIDED = ("low_rank", "full")
"""Kinds of posteriors whose particles share nothing that trains and draw nothing together."""


class Division:
    """A posterior of which this process holds a part of the particles.

    Args:
        posterior: whole, the same in all processes; its tensors change in place.
        ranks: the processes that divide it; one leaves it as it is.

    Raises:
        BellaError: a kind that cannot be divided, or fewer particles than processes.
    """

    def __init__(self, posterior: Posterior, ranks: Ranks = ALONE):
        self.posterior = posterior
        self.ranks = ranks
        self.total = posterior.particles
        if ranks.size == 1:
            return
        if posterior.kind not in DIVIDED:
            raise BellaError(
                f"Particles of kind {posterior.kind!r} cannot be divided among processes: choose "
                f"{' or '.join(map(repr, DIVIDED))}, or particle_processes=1, which divides the "
                "examples."
            )
        if self.total < ranks.size:
            raise BellaError(
                f"{self.total} particles cannot be divided among {ranks.size} processes: lower "
                "particle_processes to at most their number."
            )
        self._cut()

    def stacked(self) -> dict[str, Tensor]:
        """Every tensor that has a row for each particle, buffers too, by its name in files."""
        return {
            f"{name}.{key}" if name else key: value
            for name, layer in self.posterior.layers().items()
            for key, value in layer.state_dict(keep_vars=True).items()
            if not key.startswith("base.")
        }

    @contextmanager
    def whole(
        self, optimizer: Optimizer | None = None, kept: Iterable[dict[str, Tensor]] = ()
    ) -> Iterator[None]:
        """Inside the block every process has all particles; afterwards its own part of them as they
        then are, so that all may be written or read inside.

        Args:
            optimizer: whose moments are made whole too.
            kept: copies of the particles by the same names, made whole too.
        """
        if self.ranks.size == 1:
            yield
            return
        states = self._moments(optimizer)
        copies = [(held, name) for held in kept for name in held if name in self.stacked()]
        with torch.no_grad():
            for value in self.stacked().values():
                value.grad = None
                value.data = self.ranks.gather(value.data, self.total)
            for held, name in (*states, *copies):
                held[name] = self.ranks.gather(held[name], self.total)
        self.posterior.hold(ALONE, self.total)
        yield
        self._cut(optimizer)

    def _cut(self, optimizer: Optimizer | None = None) -> None:
        own = self.ranks.part(self.total)
        rows = slice(own.start, own.stop)
        with torch.no_grad():
            for held, name in self._moments(optimizer):
                held[name] = held[name][rows].clone()
            for value in self.stacked().values():
                value.grad = None
                value.data = value.data[rows].clone()
        self.posterior.hold(self.ranks, self.total)

    def _moments(self, optimizer: Optimizer | None) -> list[tuple[dict[str, Any], str]]:
        """Where an optimiser holds a row for each particle."""
        if optimizer is None:
            return []
        return [
            (optimizer.state[p], name)
            for p in self.stacked().values()
            for name, held in optimizer.state.get(p, {}).items()
            if isinstance(held, Tensor) and held.shape == p.shape
        ]

    def own(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a copy of all particles, by the same names, this process's part."""
        if self.ranks.size == 1:
            return kept
        rows, names = self.ranks.part(self.total), self.stacked()
        return {
            name: value[rows.start : rows.stop].clone()
            if name in names and len(value) == self.total
            else value
            for name, value in kept.items()
        }

    def end(self) -> None:
        """Every process has all particles from now on."""
        with self.whole():
            self.ranks = ALONE
