"""What was done to a network since its posterior was made: hooks, exchanged modules, flags.

A proof says how a network folds as it is. What is hung on it or exchanged in it later may mix the
rows that a fold puts side by side, so each such change is part of the kind of a pass: another kind
is proven by itself, and where a change is taken back, what was proven before holds again.

Every pass asks, so what is looked at is what one glance at a module shows: which hooks hang on it,
whether it has a forward of its own, of which class it is and what forward that class has, which
modules stand inside it, its mode, and flags that it or its configuration held from the start. Other
attributes and the values of tensors are not looked at.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, compress
from operator import is_not
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torchs
from torch.nn.utils.parametrizations import _SpectralNorm

from bella.particles.copies import Copies
from bella.particles.layer import ParticleLayer
from bella.particles.stream import Places

BACKWARD = "backward hook"

HUNG = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": BACKWARD,
    "_backward_hooks": BACKWARD,
}
"""Where torch keeps hooks of a module, and what they are called."""

FOR_ALL = {
    "_global_forward_pre_hooks": "forward pre-hook",
    "_global_forward_hooks": "forward hook",
    "_global_backward_pre_hooks": BACKWARD,
    "_global_backward_hooks": BACKWARD,
}
"""Where it keeps those of all modules."""

NO_FLAGS = ("training", "gradient_checkpointing", "_is_full_backward_hook")
"""Attributes that are yes or no and seen elsewhere, or change no output."""

LISTENERS = ("bella.", "torch.utils.module_tracker")
"""Where hooks are written that change nothing. Torch's own say which module runs while operations
are counted, and were each count a change, its proof would be counted too."""

PASSING = re.compile(r"Change\(what='(?!mode|flag)")
"""In how a kind of pass is written: changes of which another session knows but the name."""

_turns = threading.RLock()

Where = tuple[str, str | None, int]
"""A hook's kind, the module that it hangs on, and torch's number of it."""


class Change(NamedTuple):
    """One thing about a network that is not as it was.

    Attributes:
        what: a kind of hook, ``forward``, ``module``, ``class``, ``mode`` or ``flag``.
        place: the module's name in the network; ``None`` where it concerns all modules.
        name: of what is there now.
        number: tells those of one name apart.
    """

    what: str
    place: str | None
    name: str = ""
    number: int = 0

    def __str__(self) -> str:
        if self.place is None:
            return f"the {self.what} {self.name} of all modules"
        return f"the {self.what} {self.name} of {self.place or 'the network'}"

    def touches(self, places: Places) -> bool:
        """Whether it may concern what runs in a shared prefix."""
        if self.place is None:
            return True
        if places.entrance.startswith(f"{self.place}.") or not self.place:
            return self.what != "forward hook"  # which would follow all of it
        inside, (blocks, dot, last) = f"{self.place}.", places.entrance.rpartition(".")
        if any(inside.startswith(f"{name}.") for name in places.outputs):
            return True
        # Hooks hear calls, and here the prefix makes none. Whatever else there is anybody may read,
        # but what stands in the blocks from the entrance on is theirs.
        theirs = blocks + dot if dot else f"{last}."
        return self.what not in HUNG.values() and not inside.startswith(theirs)


def lasting(kind: Iterable[Any]) -> set[Change]:
    """Those changes in a kind of pass that are not a matter of mode or of gradients: what a shared
    prefix made is kept over both."""
    changes = [part for part in kind if isinstance(part, Change)]
    return {change for change in changes if change.what not in ("mode", BACKWARD)}


def with_changes(kind: Iterable[Any]) -> str:
    """Those in a kind of pass in words, for the end of a line."""
    changes = [part for part in kind if isinstance(part, Change)]
    more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
    return f", with {changes[0]}{more}" if changes else ""


class Changes:
    """Looks at a network.

    Args:
        network: as it is when its posterior is made: changes are counted from here. Hooks and
            forwards of its own count whenever they came, because another session may not have them.

    Attributes:
        norms: its batch norms.
        began_as: tells networks of other modules or flags apart, in any session.
    """

    modules: list[nn.Module]
    known: tuple[list, list, list, tuple[Change, ...]] | None  # modes, hooks, the rest: at last
    copied: dict[str, Any] | None  # what a copy is to look with for the first time

    def __init__(self, network: nn.Module):
        self.network = network
        self.counts: dict[tuple[Any, ...], int] = {}
        self.met: dict[tuple[Any, ...], list[tuple[int, Callable[[], Any]]]] = {}
        self.gone: set[Change] = set()
        self.first = {name: (_ref(m), type(m)) for name, m in network.named_modules()}
        self.flags: dict[tuple[str, str], Any] = {}
        self.forwards: dict[type[nn.Module], Any] = {}
        self.its_own: dict[Where, Callable[[], Any]] = {}  # hooks that it hung on itself
        self.copied = None
        self.look()
        began = sorted((name, kind.__qualname__) for name, (_, kind) in self.first.items())
        said = repr((began, sorted(self.flags.items())))
        self.began_as = hashlib.sha256(said.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        """What is in the network no more does not go along: pickle may not know it."""
        self.now()
        kept = ("network", "counts", "flags", "began_as")
        here = dict(zip(self.names, self.modules, strict=True))
        first = {}
        for name, (module, kind) in self.first.items():
            same = here.get(name) if module() is here.get(name) else None
            first[name] = same, kind if type(same) is kind else None
        return {name: getattr(self, name) for name in kept} | {
            "first": first,
            "forwards": {kind: _forward_in(kind) is self.forwards[kind] for kind in self.classes},
            "its_own": list(self.its_own),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy numbers on: what was hung on the network may be copied as well. It looks when it
        is first asked, because the copy of the network may not be finished yet."""
        vars(self).update(
            state, met={}, gone=set(), first={}, forwards={}, its_own={}, copied=state
        )
        self.modules, self.known = [], None

    def look(self) -> None:
        """See which modules there are; what is new shows its flags."""
        copied, self.copied = self.copied, None
        if copied is not None:
            self.first = {name: (_ref(m), kind) for name, (m, kind) in copied["first"].items()}
            as_first = copied["forwards"].items()
            self.forwards = {kind: _forward_in(kind) if same else None for kind, same in as_first}
        named = dict(self.network.named_modules())
        self.names, self.modules = list(named), list(named.values())
        self.parts: set[str] = set()  # bella's own layers, but for the modules that they stand for
        for name, module in named.items():
            parent, _, key = name.rpartition(".")
            if isinstance(module, ParticleLayer) or (parent in self.parts and key != "base"):
                self.parts.add(name)
        self.inside = list(chain.from_iterable(m._modules.values() for m in self.modules))
        self.norms = [m for m in self.modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.own: list[tuple[dict[str, Any], str, tuple[str, str]]] = []
        read: set[int] = set()
        for name, module in named.items():
            if name in self.parts:
                continue
            config = getattr(module.__dict__.get("config"), "__dict__", {})
            for held, where in (module.__dict__, ""), (config, "config."):
                if id(held) in read:  # modules share a configuration
                    continue
                read.add(id(held))
                for key, value in held.items():
                    if isinstance(value, bool | str) and key not in NO_FLAGS:
                        self.flags.setdefault((name, where + key), value)
                        self.own.append((held, key, (name, where + key)))
        self.classes = sorted({type(m) for m in self.modules}, key=lambda kind: kind.__qualname__)
        for kind in self.classes:
            self.forwards.setdefault(kind, _forward_in(kind))
        self.known = None
        if copied is not None:
            hung = self._hung(enumerate(map(vars, self.modules)), trains=True)
            self.its_own = {where: _ref(hook) for where, hook in hung if where in copied["its_own"]}

    @contextmanager
    def its_own_doing(self) -> Iterator[None]:
        """What the network does to itself in a pass inside the block is no change: transformers
        hangs hooks on one in its first pass."""
        before = set(self.now())
        try:
            yield
        finally:
            self._take(before)

    def _take(self, before: set[Change]) -> None:
        after = self.now()
        news = set(after) - before
        if not news or self.known is None:
            return
        for change, where, hook in zip(after, *self.known[1:3], strict=False):  # hooks come first
            if change in news and change.what in HUNG.values():
                self.its_own[where] = _ref(hook)
        modules = dict(zip(self.names, self.modules, strict=True))
        for what, place, *_ in news:
            if what in ("module", "class") and place in modules:
                self.first[place] = (_ref(modules[place]), type(modules[place]))
        for flag in self.own:
            if self._flag(*flag) in news:
                held, key, which = flag
                self.flags[which] = held.get(key)
        self.known = None

    def now(self) -> tuple[Change, ...]:
        """What is not as it was. A pass that torch compiles has what was so when it was compiled:
        torch does so again where a module or an attribute is exchanged, and not for a hook."""
        return self._compiled() if torch.compiler.is_compiling() else self._glance()

    @torch.compiler.assume_constant_result
    def _compiled(self) -> tuple[Change, ...]:
        return self._glance()

    def _glance(self) -> tuple[Change, ...]:
        owns = [module.__dict__ for module in self.modules]
        inside = chain.from_iterable([own["_modules"].values() for own in owns])
        if self.copied is not None or list(inside) != self.inside:
            with _turns:
                self.look()
            owns = [module.__dict__ for module in self.modules]
        odd = [
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            for own in owns
        ]
        hung = list(self._hung(compress(enumerate(owns), odd), trains=torch.is_grad_enabled()))
        modes, wheres = [own["training"] for own in owns], [where for where, _ in hung]
        seen = [
            *[hook for _, hook in hung],
            *map(type, self.modules),
            *map(_forward_in, self.classes),
            *[held.get(key) for held, key, _ in self.own],
        ]
        known = self.known
        if (
            known is None
            or known[0] != modes
            or known[1] != wheres
            or any(map(is_not, known[2], seen))
        ):
            with _turns:
                known = self.known = (modes, wheres, seen, tuple(self._changes(hung)))
        return known[3]

    def _hung(
        self, odd: Iterable[tuple[int, dict[str, Any]]], *, trains: bool
    ) -> Iterator[tuple[Where, Any]]:
        """A caller's hooks, and forwards of a module's own."""
        for at, own in chain([(None, vars(torchs))], odd):
            name = None if at is None else self.names[at]
            for kept, what in (FOR_ALL if at is None else HUNG).items():
                if own[kept] and (trains or what != BACKWARD):
                    for key, hook in tuple(own[kept].items()):
                        where = (what, name, key)
                        its_own = self.its_own.get(where)
                        if not comes_from(hook, *LISTENERS) and (
                            its_own is None or its_own() is not hook
                        ):
                            yield where, hook
            if at is not None and (forward := _forward_of(self.modules[at])) is not None:
                yield ("forward", name, 0), forward

    def _changes(self, hung: list[tuple[Where, Any]]) -> Iterator[Change]:
        for (what, place, _), hook in hung:
            yield self._numbered(what, place, hook)
        for kind in self.classes:
            if (forward := _forward_in(kind)) is not self.forwards[kind]:
                yield self._numbered("forward", None, forward)
        for name in sorted(self.first.keys() - set(self.names)):
            yield Change("module", name, "None")
        training = self.network.training
        for name, module in zip(self.names, self.modules, strict=True):
            if name in self.parts:
                continue
            first, kind = self.first.get(name, (_none, type(module)))
            if first() is not module:
                yield self._numbered("module", name, module)
            elif kind is not type(module):
                yield self._numbered("class", name, type(module))
            if module.training != training and not _keeps_its_mode(module):
                yield Change("mode", name, "training" if module.training else "evaluation")
        yield from filter(None, (self._flag(*flag) for flag in self.own))

    def _flag(self, held: dict[str, Any], key: str, which: tuple[str, str]) -> Change | None:
        value, first = held.get(key), self.flags[which]
        if type(value) is type(first) and value == first:
            return None
        said = repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
        return Change("flag", which[0], f"{which[1]}={said}")

    def _numbered(self, what: str, place: str | None, thing: Any) -> Change:
        """A change, told apart from others of that name for as long as they live; `gone` are those
        that do not any more, and no later one has their number."""
        key = (what, place, _name_of(thing))
        living, number = [], None
        for known, ref in self.met.get(key, ()):
            one = ref()
            if one is None:
                self.gone.add(Change(*key, known))
                continue
            living.append((known, ref))
            if one is thing or (inspect.ismethod(one) and one == thing):
                number = known
        if number is None:
            number = self.counts.get(key, 0)
            self.counts[key] = number + 1
            living.append((number, _ref(thing)))
        self.met[key] = living
        return Change(*key, number)


def _none() -> None:
    return None


def _ref(thing: Any) -> Callable[[], Any]:
    """What gives a thing for as long as it lives."""
    try:
        return weakref.WeakMethod(thing) if inspect.ismethod(thing) else weakref.ref(thing)
    except TypeError:
        return lambda: thing


def _bare(function: Any) -> Any:
    """The function that a partial calls."""
    while isinstance(function, partial):
        function = function.func
    return function


def comes_from(function: Any, *packages: str) -> bool:
    """Whether a function, or what a partial calls, is written in a package ``name.``."""
    return str(getattr(_bare(function), "__module__", "")).startswith(packages)


def _forward_of(module: nn.Module) -> Any:
    """A module's own forward in place of its class's; what bella puts around it for a pass is
    looked through."""
    forward = vars(module).get("forward")
    while isinstance(forward, partial) and comes_from(forward, "bella."):
        forward = forward.args[-1]
    of_class = getattr(forward, "__func__", None) is type(module).forward
    return None if of_class else forward


def _forward_in(kind: type[nn.Module]) -> Any:
    """A class's forward as it is written down: what some descriptors make of it is new each time
    that it is asked for."""
    return next(vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base))


def _name_of(thing: Any) -> str:
    bare = _bare(thing)
    named = bare if hasattr(bare, "__qualname__") else type(bare)
    return f"{named.__module__}.{named.__qualname__}"


def _keeps_its_mode(module: nn.Module) -> bool:
    """Whether posteriors put it into a mode of its own, or a proof does; norms are looked at by
    themselves."""
    if isinstance(module, Copies):
        return module.normalises
    return isinstance(module, nn.modules.batchnorm._NormBase | _SpectralNorm)
