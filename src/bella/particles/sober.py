"""Passes without chance: dropout off and noise at its mean, whatever the network draws and where.

Two ways to run a network can be compared only if both draw the same, and what they draw depends on
how many rows they run. So proofs replace what torch draws by its mean, below the network's own
code: no module's mode is changed and no random number is used up.

The same place sees operations whose result has a shape, or is a number, that depends on what the
particles said (`Watch`): rows that data choose cannot be told apart by particle.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bella.particles.exact import exactly
from bella.trees import tensors_of

aten = torch.ops.aten

_held: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Modules that `evaluating` took out of training, and how many blocks hold each."""
_lock = threading.Lock()

MEANS: dict[Any, Callable[..., Any]] = {
    aten.bernoulli_.float: lambda x, p=0.5, **_: x.fill_(p),
    aten.bernoulli_.Tensor: lambda x, p, **_: x.copy_(p),
    aten.bernoulli.default: lambda x, **_: x.clone(),
    aten.bernoulli.p: lambda x, p, **_: torch.full_like(x, p),
    aten.native_dropout.default: lambda x, *_: (x.clone(), torch.ones_like(x, dtype=torch.bool)),
    aten.normal_.default: lambda x, mean=0.0, *_, **__: x.fill_(mean),
    aten.uniform_.default: lambda x, low=0.0, high=1.0, **_: x.fill_((low + high) / 2),
    aten.exponential_.default: lambda x, rate=1.0, **_: x.fill_(1 / rate),
    aten.cauchy_.default: lambda x, median=0.0, *_, **__: x.fill_(median),
    aten.randn_like.default: lambda x, **_: torch.zeros_like(x),
    aten.rand_like.default: lambda x, **_: torch.full_like(x, 0.5),
}
"""The mean (for a Cauchy variable the median) of what an operation draws."""

FILLED: dict[Any, float] = {aten.randn: 0.0, aten.rand: 0.5}

DEPENDENT = {
    aten.nonzero,
    aten.masked_select,
    aten.unique_dim,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
    aten._local_scalar_dense,
    aten.equal,
}


DECIDING = {aten._local_scalar_dense, aten.equal, aten.nan_to_num, aten.is_nonzero}
"""What lets a number decide, or takes NaN away, and returns no tensor that shows it."""

TEMPLATES = {
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like),
    *(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty_strided),
}
"""What takes only a tensor's shape, dtype and place."""


class Sober(TorchDispatchMode):
    """Inside the block torch draws means."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or answer with its mean."""
        return soberly(func, args, kwargs or {})


def soberly(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run an operation, or answer with the mean of what it draws."""
    if func in MEANS:
        return MEANS[func](*args, **kwargs)
    packet = func.overloadpacket
    if packet in FILLED:
        options = {k: v for k, v in kwargs.items() if k != "generator"}
        return torch.full(args[0], FILLED[packet], **options)
    place = _place_of_dropout(func)
    if place is not None:
        if place < len(args):
            args = (*args[:place], 0.0, *args[place + 1 :])
        elif "dropout_p" in kwargs:
            kwargs = kwargs | {"dropout_p": 0.0}
    return func(*args, **kwargs)


@cache
def _place_of_dropout(func: Any) -> int | None:
    """Where an operation's arguments hold the rate of a dropout."""
    names = [argument.name for argument in func._schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else None


class Guard(Sober):
    """Inside the block it is also seen where a placeholder decides: where NaN becomes a yes or no,
    a whole number, or a number that Python reads, it is gone, and so is the sign that it was used.

    Args:
        told: called there.
    """

    def __init__(self, told: Callable[[], None]):
        super().__init__()
        self.told = told

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; see whether it turns NaN into what is no NaN any more."""
        outputs = soberly(func, args, kwargs or {})
        packet = func.overloadpacket
        if packet in DECIDING or (packet not in TEMPLATES and _counts(outputs)):
            given = [x for x in tensors_of((args, kwargs or {})) if x.is_floating_point()]
            if any(bool(x.isnan().any()) for x in given):
                self.told()
        return outputs


class Watch(Sober):
    """Inside the block it is also seen where the data of particles decide a shape, or a number that
    Python reads.

    Args:
        told: called there.
    """

    def __init__(self, told: Callable[[], None]):
        super().__init__()
        self.told = told
        self.touched: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.reads = _Reads(self)

    def __enter__(self) -> Any:
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def touch(self, outputs: Any) -> None:
        """Particles said this: what follows from it depends on them."""
        self.touched.update(x.untyped_storage() for x in _strided(outputs))

    def follows(self, inputs: Any) -> bool:
        """Whether any of these depends on what particles said."""
        return bool(self.touched) and any(
            x.untyped_storage() in self.touched for x in _strided(inputs)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; see whether it lets data of particles decide."""
        follows = self.follows((args, kwargs))
        if follows and (func.overloadpacket in DEPENDENT or _selects(func.overloadpacket, args)):
            self.told()
        outputs = soberly(func, args, kwargs or {})
        if follows:
            self.touch(outputs)
        return outputs


class _Reads(TorchFunctionMode):
    """Sees what Python reads without an operation."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__) and self.watch.follows(args):
            self.watch.told()
        return func(*args, **(kwargs or {}))


class TensorHooks(TorchFunctionMode):
    """Inside the block it is seen where somebody hangs a hook on a tensor, for its gradient.

    Args:
        told: called there with the hook.
    """

    def __init__(self, told: Callable[[Any], None]):
        super().__init__()
        self.told = told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it."""
        if func is Tensor.register_hook:
            self.told(args[1])  # torch hands both over by position
        return func(*args, **(kwargs or {}))


def _counts(outputs: Any) -> bool:
    """Whether an operation returns yes or no, or whole numbers."""
    return any(not (x.is_floating_point() or x.is_complex()) for x in tensors_of(outputs))


def _strided(tree: Any) -> list[Tensor]:
    return [x for x in tensors_of(tree) if x.layout is torch.strided]


def _selects(packet: Any, args: tuple) -> bool:
    """Whether it indexes with a mask, or repeats by a tensor."""
    if packet is aten.index:
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return packet is aten.repeat_interleave and isinstance(args[0], Tensor) and len(args) == 1


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Random numbers (torch's, numpy's, Python's) and buffers are afterwards as they were; products
    are full float32 inside, see `bella.particles.exact`."""
    device = next(iter(network.parameters()), torch.empty(0)).device
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), exactly(device):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in.

    Blocks may be nested and be open in several threads: the last that holds a module puts it back,
    or the one that met it in training all the same.
    """
    with _lock:
        held = [m for m in module.modules() if m.training or m in _held]
        again = {m for m in held if m.training and m in _held}
        if any(m.training for m in held):
            module.eval()
        for m in held:
            _held[m] = _held.get(m, 0) + 1
    try:
        yield
    finally:
        with _lock:
            for m in held:
                _held[m] -= 1
                m.training |= m in again or not _held[m]
                if not _held[m]:
                    del _held[m]


def seed_all(seed: int = 0) -> None:
    """Begin torch's, numpy's and Python's random numbers anew: for what has no mean."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # that one notes each call, with where it came from, for a device that may come
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
