"""How particles move: one file for each transport, over shared Gram matrices and kernels.

A transport is made once and stepped between ``backward`` and the optimiser. To add one, write a
file with a subclass of `Transport` and put it in `TRANSPORTS`.
"""

from __future__ import annotations

import inspect
from typing import Any

from bella.errors import BellaError, nearest
from bella.posterior import Posterior
from bella.transport.base import Mover, Transport
from bella.transport.ensemble import Ensemble
from bella.transport.function import Function
from bella.transport.repulsive import Repulsive
from bella.transport.svgd import Svgd

TRANSPORTS: dict[str, type[Transport]] = {
    kind.name: kind for kind in (Ensemble, Repulsive, Svgd, Function)
}

ensemble, repulsive, svgd, function = Ensemble, Repulsive, Svgd, Function

__all__ = [
    "TRANSPORTS",
    "Mover",
    "Transport",
    "by_name",
    "ensemble",
    "function",
    "repulsive",
    "svgd",
]


def by_name(name: str, posterior: Posterior, **options: Any) -> Transport:
    """Make a transport by its name in `TRANSPORTS`.

    Raises:
        BellaError: an unknown name or option.
    """
    if name not in TRANSPORTS:
        raise BellaError(
            f"transport={name!r} is unknown: near names are {nearest(name, TRANSPORTS)}."
        )
    kind = TRANSPORTS[name]
    for option in options:
        if option not in options_of(kind):
            raise BellaError(
                f"transport {name!r} has no option {option!r}: near names are "
                f"{nearest(option, options_of(kind))}."
            )
    return kind(posterior, **options)


def options_of(kind: type[Transport]) -> set[str]:
    """Names of a transport's options, its own and those that it hands on."""
    constructors = [base.__init__ for base in kind.__mro__ if issubclass(base, Transport)]
    parameters = [p for made in constructors for p in inspect.signature(made).parameters.values()]
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
