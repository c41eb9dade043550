"""Choosing layers by name, the way PEFT's users know it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from bella.errors import BellaError, nearest
from bella.patterns import fullmatch

Targets = str | Sequence[str]


def as_list(targets: Targets | None) -> list[str] | None:
    """Targets as JSON holds them."""
    return [targets] if isinstance(targets, str) else None if targets is None else list(targets)


def matches(name: str, target: str) -> bool:
    """Whether module ``name`` is meant by ``target``: a name, a dotted suffix, or a whole regex."""
    if name == target or name.endswith(f".{target}"):
        return True
    try:
        return fullmatch(target, name)
    except re.error:
        return False


def find(network: nn.Module, targets: Targets, *, what: str = "target_modules") -> list[str]:
    """Names of the modules that ``targets`` mean, in the network's own order.

    Args:
        network: where to look.
        targets: names (``"encoder.0.fc1"``), suffixes (``"fc1"``) or regular expressions over whole
            names (``r".*layers\\.(10|11)\\.mlp\\.fc[12]"``).
        what: the argument's name, for the message.

    Raises:
        BellaError: a target means no module; the message lists near names.
    """
    wanted: Iterable[str] = (targets,) if isinstance(targets, str) else targets
    names = [name for name, _ in network.named_modules() if name]
    found: set[str] = set()
    for target in wanted:
        hits = [name for name in names if matches(name, target)]
        if not hits:
            known = {name.rpartition(".")[2] for name in names} | set(names)
            raise BellaError(
                f"{what}={target!r} names no module of {type(network).__name__}: "
                f"near names are {nearest(target, known, count=5)}."
            )
        found.update(hits)
    return [name for name in names if name in found]


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` stands in ``network``."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
