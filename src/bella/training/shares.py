"""A batch shared out among processes: what cannot be, each one's part, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.parallel.mesh import Mesh
from bella.parallel.ranks import Ranks
from bella.parallel.sharding import is_sharded
from bella.posterior import Posterior
from bella.training.settings import Settings
from bella.transport.base import Mover


def share_of(
    posterior: Posterior, batch: tuple, ranks: Ranks
) -> tuple[tuple, dict[str, Any], Tensor, Tensor]:
    """This process's examples of a batch.

    Every process has as many, so that all run passes of the same shapes: where they do not come out
    even, the last ones have an example twice, which weighs nothing.

    Args:
        posterior: finds out which tensors carry the examples.
        batch: positional inputs or a stream, named inputs, labels (batch, ...), and perhaps what
            each example weighs, (batch,).
        ranks: the processes.

    Returns:
        The same of some examples, and their weights.

    Raises:
        BellaError: the examples depend on each other.
    """
    args, kwargs, labels, *more = batch
    count = len(labels)
    most = -(-count // ranks.size)
    rows = torch.arange(most * ranks.rank, most * (ranks.rank + 1), device=labels.device)
    weighs = rows < count
    rows = rows.clamp_max(count - 1)
    posterior.prove(*args, **kwargs)
    some = posterior.some(args, kwargs, rows)
    if some is None:
        raise BellaError(
            f"The examples of a batch depend on each other, so that {ranks.size} processes cannot "
            "share them out: start one, or let the processes share the particles "
            "(particle_processes)."
        )
    weights = weighs.float() if not more or more[0] is None else more[0][rows] * weighs
    return (*some, labels[rows], weights)


def check_can_share(
    posterior: Posterior, mesh: Mesh, settings: Settings, movers: Sequence[Mover]
) -> None:
    """Refuse what several processes cannot do as one does it.

    Raises:
        BellaError: something that looks at a batch as a whole, or draws for each particle.
    """
    if mesh.world.size == 1:
        return
    ways = "start one process"
    if is_sharded(posterior):
        if settings.particles_per_pass == "auto":
            raise BellaError(
                "particles_per_pass='auto' measures passes, and those of a sharded base need all "
                "processes: give a number, or None."
            )
        if posterior.particles % mesh.particles.size:
            raise BellaError(
                f"Every pass of a sharded base needs all processes, and {posterior.particles} "
                f"particles on {mesh.particles.size} are not as many each: choose a number that "
                "particle_processes divides."
            )
    if settings.minibatches == "own":
        raise BellaError(f"minibatches='own' is defined in one process: share them, or {ways}.")
    if movers:
        raise BellaError(
            f"{type(movers[0]).__name__} moves by what a whole batch shows, and each process sees "
            f"its part of it: {ways}."
        )
    if mesh.data.size == 1:
        return
    if settings.transport == "function":
        raise BellaError(
            "transport 'function' compares predictions of a whole batch: let the processes share "
            f"the particles (particle_processes={mesh.world.size}), or {ways}."
        )
    learns = [
        name
        for name, module in posterior.train().network.named_modules()
        if getattr(module, "normalises", False)
        or (isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training)
    ]
    if learns:
        raise BellaError(
            f"{learns[0]} is a batch norm that trains, and each process would see its part of a "
            f"batch: freeze it, let the processes share the particles, or {ways}."
        )


def checksum(posterior: Posterior) -> list[float]:
    """What tells whether two processes hold the same particles."""
    own = posterior.stacked_parameters().values()
    return [float(p.detach().double().sum()) for p in own]
