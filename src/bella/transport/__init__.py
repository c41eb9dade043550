"""How particles move: one file for each transport, over shared Gram matrices and kernels.

A transport is made once and stepped between ``backward`` and the optimiser. To add one, write a
file with a subclass of `Transport` and put it in `TRANSPORTS`.
"""

from __future__ import annotations

from typing import Any

from bella.errors import BellaError, nearest
from bella.posterior import Posterior
from bella.transport.base import Transport
from bella.transport.ensemble import Ensemble
from bella.transport.function import Function
from bella.transport.repulsive import Repulsive
from bella.transport.svgd import Svgd

TRANSPORTS: dict[str, type[Transport]] = {
    kind.name: kind for kind in (Ensemble, Repulsive, Svgd, Function)
}

ensemble, repulsive, svgd, function = Ensemble, Repulsive, Svgd, Function

__all__ = ["TRANSPORTS", "Transport", "by_name", "ensemble", "function", "repulsive", "svgd"]


def by_name(name: str, posterior: Posterior, **options: Any) -> Transport:
    """Make a transport by its name in `TRANSPORTS`.

    Raises:
        BellaError: an unknown name or option.
    """
    if name not in TRANSPORTS:
        raise BellaError(
            f"transport={name!r} is unknown: near names are {nearest(name, TRANSPORTS)}."
        )
    try:
        return TRANSPORTS[name](posterior, **options)
    except TypeError as error:
        raise BellaError(f"transport {name!r} does not take these options: {error}.") from None
