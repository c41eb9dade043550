"""A batch shared out among processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError
from bella.parallel.ranks import Ranks
from bella.posterior import Posterior


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
