"""Choosing layers by name, the way PEFT's users know it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from bella.errors import BellaError, nearest
from bella.patterns import fullmatch

Targets = str | Sequence[str]

Value = TypeVar("Value")


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


def choices(names: Sequence[str], limit: int = 12) -> str:
    """The layers that can be named, by the last part of their names, for an error message."""
    suffixes = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    if not suffixes:
        return "no layer of this network can be adapted"
    more = f" and {len(suffixes) - limit} more" if len(suffixes) > limit else ""
    return f"layers that can be adapted are {', '.join(map(repr, suffixes[:limit]))}{more}"


def find(
    network: nn.Module,
    targets: Targets,
    *,
    what: str = "target_modules",
    able: Callable[[], Sequence[str]] | None = None,
) -> list[str]:
    """Names of the modules that ``targets`` mean, in the network's own order.

    Args:
        network: where to look.
        targets: names (``"encoder.0.fc1"``), suffixes (``"fc1"``) or regular expressions over whole
            names (``r".*layers\\.(10|11)\\.mlp\\.fc[12]"``).
        what: the argument's name, for the message.
        able: names of the modules that can be chosen, for the message; any can be for ``None``.

    Raises:
        BellaError: a target means no module; the message lists those that can be chosen, or near
            names.
    """
    wanted: Iterable[str] = (targets,) if isinstance(targets, str) else targets
    # What makes a weight (torch.nn.utils.parametrizations) stands below it and has names like 0.
    first: dict[int, str] = {}  # a module in several places is one, by its first name
    names = {
        name: first.setdefault(id(module), name)
        for name, module in network.named_modules(remove_duplicate=False)
        if name and "parametrizations" not in name.split(".")
    }
    found: set[str] = set()
    for target in wanted:
        hits = [name for name in names if matches(name, target)]
        if not hits:
            known = {name.rpartition(".")[2] for name in names} | set(names)
            near = f"near names are {nearest(target, known, count=5)}"
            raise BellaError(
                f"{what}={target!r} names no module of {type(network).__name__}: "
                f"{near if able is None else choices(able())}."
            )
        found.update(names[name] for name in hits)
    return [name for name in names if name in found]


def exactly(network: nn.Module, names: Collection[str]) -> list[str]:
    """Targets that mean these modules and no others: suffixes where those do, else whole names.

    Args:
        network: where the modules are.
        names: whole names of some of them.
    """
    suffixes = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    if names and set(find(network, suffixes)) == set(names):
        return suffixes
    return [whole(name) for name in names]


def whole(name: str) -> str:
    """A target that means the module of this name alone, and none whose name ends so."""
    return f"(?:{re.escape(name)})"


def value_for(name: str, patterns: Mapping[str, Value], default: Value) -> Value:
    """What a pattern of ranks or of alphas says of a module: the first key that matches it.

    As in PEFT, a key is a regular expression that the name, or its end from a dot on, matches.
    """
    for key, value in patterns.items():
        if f".{name}".endswith(f".{key}") or fullmatch(rf"(.*\.)?({key})", name):
            return value
    return default
