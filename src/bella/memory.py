"""How many particles fit into one pass: their bytes are measured, not guessed.

A step is run with one particle, two, four, ... while every tensor that it makes is counted, until
the most bytes that live at once (what backward needs, gradients and working tensors) reach the
budget. Only shapes and dtypes decide, and the steps leave no trace.

    for chunk in bella.chunks(posterior, x, memory=2**30):
        with posterior.subset(chunk):
            bella.nll(posterior(x), y).backward()

gives the gradients of one pass over all particles. ``posterior.prefix(x)`` may stand for x in both
lines: then what the particles share runs once.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bella.errors import BellaError
from bella.host import free_bytes
from bella.inputs import arguments
from bella.posterior import Posterior
from bella.trees import tensors_of

SHARE = 0.5
"""Part of the free memory that a step may take where nobody says."""

KEPT = 2**24
"""Bytes of the largest tensor on a CPU where nobody says: it stays in the cache, and far below the
32 MB above which glibc maps memory anew for every use. A ViT-S took 10.9 s for 24 particles and 32
images one at a time (10 MB), 12.0 s three at a time (29 MB), 13.9 s all at once (AMD EPYC)."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the block, as long as they live.

    What an operation takes and gives back within itself is not seen, nor what the allocator loses:
    on a CPU the process grew by 53 MB a particle where 42 MB were counted (six blocks of a ViT-S).

    Attributes:
        now: bytes that live now.
        peak: the most that lived at once.
        sizes: how many were made of each number of bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: Counter[int] = Counter()
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; count what it returns unless that was there before."""
        self.known.update(storages((args, kwargs)))
        outputs = func(*args, **(kwargs or {}))
        for storage in storages(outputs):
            if storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                self.sizes[storage.nbytes()] += 1
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return outputs

    def _forget(self, size: int) -> None:
        self.now -= size


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of the dense tensors in ``tree``."""
    leaves = [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return [x.untyped_storage() for x in leaves if x.layout is torch.strided]


@dataclass(frozen=True)
class Counted:
    """A step's bytes. Parameters, their gradients from before and the optimiser's state are not
    among them.

    Attributes:
        peak: the most that lived at once.
        sizes: how many tensors were made of each number of bytes.
    """

    peak: int
    sizes: Counter[int]


MEASURED: weakref.WeakKeyDictionary[Posterior, dict[Hashable, dict[int, Counted]]] = (
    weakref.WeakKeyDictionary()
)
"""What steps of which posteriors took, by what decides it and the number of particles."""


def measure(posterior: Posterior, step: Callable[[], Any], count: int) -> Counted:
    """Count the bytes of a step of the first ``count`` particles.

    Args:
        posterior: whose particles run.
        step: runs those of them that are chosen, forward and, if it is to be counted, backward
            (``torch.autograd.grad`` leaves ``.grad`` alone). Random numbers, buffers and what a
            transport has gathered are afterwards as they were.
        count: how many.
    """
    with undisturbed(posterior), posterior.subset(range(count)), LiveBytes() as live:
        step()
    return Counted(live.peak, live.sizes)


def row(one: Counted, two: Counted) -> int:
    """One particle's bytes of the largest tensor that grows with the particles, from a step of one
    particle and of two; 0 if none does."""
    # As many of the others are made: what comes before the particles, and gradients of the stacked
    # factors, which are as large with one particle as with all of them.
    return max(two.sizes - one.sizes, default=0) // 2


def largest(peak: Callable[[int], int], budget: int, wanted: int) -> int:
    """The largest number of particles up to ``wanted`` whose step stays within a budget.

    ``peak`` is the most of what lives at the moments of a step, each of which takes so much and so
    much more a particle: activations grow with the particles, the gradients of all particles do
    not. Hence it bends upwards (a line through two numbers of particles is too low beyond them and
    too high between them), and the share of each particle falls. It is never asked for more than
    twice what is known to fit.

    Args:
        peak: bytes of a step by its number of particles.
        budget: bytes.
        wanted: particles, at least 1.

    Returns:
        0 if one does not fit. Where ``peak`` has a bend just before the budget, somewhat less than
        the largest.
    """
    if peak(1) > budget:
        return 0
    fits, before = 1, 0
    while wanted * peak(fits) > fits * budget:  # otherwise the falling share says that all fit
        more = min(2 * fits, wanted)
        if before:
            each = (peak(fits) - peak(before)) / (fits - before)
            more = min(more, fits + int((budget - peak(fits)) / max(each, 1)))
        if more == fits:
            return fits
        if peak(more) > budget:
            each = (peak(more) - peak(fits)) / (more - fits)
            return fits + int((budget - peak(fits)) / each)
        fits, before = more, fits
    return wanted


def at_once(
    posterior: Posterior,
    step: Callable[[], Any],
    memory: int | None = None,
    like: Hashable = None,
) -> int:
    """How many particles to run at once, so that a step stays within a budget.

    The passes get equal numbers, as far as that goes: with room for 9 of 10 particles, it is 5.

    Args:
        posterior: whose particles run.
        step: see `measure`.
        memory: bytes; ``None`` for half of what is free, on a CPU in tensors of at most `KEPT`, and
            for one particle whatever it needs.
        like: what decides the bytes, if it is known: such a step is measured once.

    Raises:
        BellaError: ``memory`` is not enough for one particle.
    """
    if memory is None and len(posterior.chosen) == 1:
        return 1
    runs: dict[int, Counted] = {}
    if like is not None:
        runs = MEASURED.setdefault(posterior, {}).setdefault(like, runs)

    def run(count: int) -> Counted:
        if count not in runs:
            runs[count] = measure(posterior, step, count)
        return runs[count]

    def peak(count: int) -> int:
        return run(count).peak

    asked = wanted = len(posterior.chosen)
    if memory is None:
        device = next(posterior.parameters()).device
        if device.type == "cpu" and (grows := row(run(1), run(2))):
            wanted = min(wanted, max(KEPT // grows, 1))
        most = max(largest(peak, int(SHARE * free_bytes(device)), wanted), 1)
    else:
        most = largest(peak, memory, wanted)
    if not most:
        raise BellaError(
            f"A step of one particle takes {peak(1):,} bytes and the budget is {memory:,}: raise "
            "it, use smaller batches, or checkpoint activations."
        )
    passes = -(-asked // most)
    return -(-asked // passes)


def chunks(
    posterior: Posterior,
    inputs: Any,
    *,
    memory: int | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> list[list[int]]:
    """Parts of the particles, or of those of an open `subset`, each of which trains within a budget
    of memory.

    The sum of the parts' gradients is that of one pass. Batches of one shape need one call.

    Args:
        posterior: any posterior, in the mode that it trains in.
        inputs: a tensor, a tuple of arguments, a mapping of named ones, or a stream from
            ``posterior.prefix``.
        memory: bytes for what a step makes and drops again, beside parameters, gradients and the
            optimiser's state; ``None`` for half of what is free, on a CPU in tensors of at most
            `KEPT`.
        loss: a scalar made of the outputs, if it takes much memory itself; by default their sum.

    Raises:
        BellaError: ``memory`` is not enough for one particle.
    """
    args, kwargs = arguments(inputs)
    with undisturbed(posterior):
        posterior.prove(*args, **kwargs)
    if not posterior.plan_for(*args, **kwargs).folds:  # then one at a time costs nothing more
        return parts(posterior.chosen, 1)
    step = training_step(posterior, lambda: (loss or total)(posterior(*args, **kwargs)))
    return parts(posterior.chosen, at_once(posterior, step, memory))


def parts(particles: Sequence[int], size: int) -> list[list[int]]:
    """The particles in order, ``size`` at a time."""
    return [list(particles[i : i + size]) for i in range(0, len(particles), size)]


def training_step(posterior: Posterior, loss: Callable[[], Tensor]) -> Callable[[], Any]:
    """The step that takes the gradients of a loss and keeps none of them."""
    trained = [p for p in posterior.network.parameters() if p.requires_grad]

    def step() -> None:
        with torch.enable_grad():
            torch.autograd.grad(loss(), trained, allow_unused=True)

    return step


def total(outputs: Any) -> Tensor:
    """The sum of all outputs that have a gradient."""
    return torch.stack([x.float().sum() for x in tensors_of(outputs) if x.requires_grad]).sum()


@contextmanager
def undisturbed(posterior: Posterior) -> Iterator[None]:
    """Random numbers, statistics of batch norm and transports do not notice what runs inside."""
    device = next(posterior.parameters()).device
    # In evaluation mode nothing writes into buffers.
    before = [(b, b.clone()) for b in posterior.buffers()] if posterior.training else []
    mover = posterior.mover
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        nullcontext() if mover is None else mover.deaf(),
    ):
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)
