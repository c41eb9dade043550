"""The fastest float32 that is float32.

PyTorch has several ways to multiply float32 matrices on a device, and a switch for the process that
chooses among them. Its values are named after what they may round to, and what they do depends on
the machine: on processors without units for bfloat16 matrices ``bf16`` is another float32 kernel,
often the faster one; on those that have them it rounds. So the candidates are timed on shapes of
the network's own Linear layers, their error is measured against float64, and of those that stay
within `TOLERANCE` the fastest is used.

The switch belongs to the process, so scopes are counted: the first that opens sets it, the last
that closes puts back what was there, whichever thread that is in.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bella.errors import BellaError

TOLERANCE = 1e-6
"""Largest relative error ‖product - exact‖ / ‖exact‖ that counts as float32; float32 itself has
about 3.5e-7."""
GAIN = 1.15
"""How many times faster than PyTorch's default a kernel must be to be worth another rounding."""
FEWEST = 2**20
"""Weights in Linear layers below which nothing is measured: there is nothing to gain."""
SHAPES = 3
"""Of a network so many kinds of Linear layers are timed, those that hold most of its weights."""
OPERATIONS = 2e8
"""Of one timed product, about; a millisecond or less."""

DEFAULT = "default"

SWITCHES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "cpu": (torch.backends.mkldnn.matmul, ("bf16",)),  # type: ignore[attr-defined]
    "cuda": (torch.backends.cuda.matmul, ("tf32",)),
}
"""By the kind of device what holds ``fp32_precision``, and its values that may be faster: on a CPU
``tf32`` is the default's kernel, but where the processor rounds to it."""

Shapes = tuple[tuple[int, int, int], ...]
"""(out, in, how many) of Linear layers."""


@dataclass(frozen=True)
class Kernel:
    """How float32 matrices are multiplied.

    Attributes:
        name: ``default``, or the value of PyTorch's switch.
        error: relative to float64, measured here; ``None`` where nothing was.
        times_faster: than the default, measured here; ``None`` where nothing was.
    """

    name: str = DEFAULT
    error: float | None = None
    times_faster: float | None = None

    def facts(self) -> dict[str, Any]:
        """As JSON values, for the record of a run."""
        rounded = {
            name: None if value is None else float(f"{value:.3g}")
            for name, value in (("error", self.error), ("times_faster", self.times_faster))
        }
        return {"kernel": self.name, **rounded}


class _Scopes:
    """The blocks that are open in this process, in all threads, by the kind of device."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.open: dict[str, int] = {}
        self.kernel: dict[str, Kernel] = {}
        self.before: dict[str, str] = {}

    def enter(self, network: nn.Module, device: torch.device, name: str | None) -> Kernel:
        """Open a block; the first one sets the switch."""
        kind = device.type
        switch, _ = SWITCHES[kind]
        with self.lock:
            if not self.open.get(kind):
                before = switch.fp32_precision
                used = Kernel(DEFAULT if before == "ieee" else before)
                if before == "none":
                    used = fastest(network) if name is None else checked(name, network)
                refuse_other(name, used, "the caller of bella has set")
                self.before[kind], self.kernel[kind] = before, used
                if before == "none" and used.name != DEFAULT:
                    switch.fp32_precision = used.name
            used = self.kernel[kind]
            refuse_other(name, used, "a block of bella.fast_float32 around it uses")
            self.open[kind] = self.open.get(kind, 0) + 1
            return used

    def leave(self, device: torch.device) -> None:
        """Close a block; the last one puts the switch back."""
        kind = device.type
        with self.lock:
            self.open[kind] -= 1
            if not self.open[kind] and SWITCHES[kind][0].fp32_precision != self.before[kind]:
                SWITCHES[kind][0].fp32_precision = self.before[kind]


_scopes = _Scopes()
_measured: dict[tuple[Any, ...], Kernel] = {}
_shapes: WeakKeyDictionary[nn.Module, tuple[torch.dtype, Shapes]] = WeakKeyDictionary()


@contextmanager
def fast_float32(network: nn.Module, kernel: str | None = None) -> Iterator[Kernel]:
    """Multiply float32 inside the block by the fastest kernel that is float32 on this machine.

    Put it around whole steps: forward, backward and optimiser. `bella.fit`, `bella.predict`,
    `bella.evaluate` and `bella.mixture` do so by themselves. Blocks may be nested and be open in
    several threads: the switch is the process's, so the outermost decides, and the last to close
    puts back what was there, exceptions included. What the caller has set himself is left as it is.

    Args:
        network: a network or posterior; its Linear layers decide which kernel is fastest.
        kernel: the one to use, of a run that goes on; by default what `fastest` finds.

    Yields:
        The kernel in use.

    Raises:
        BellaError: ``kernel`` is unknown, rounds to less than float32 on this machine, or another
            one is in use.
    """
    device = device_of(network)
    if device.type not in SWITCHES:
        refuse_other(kernel, Kernel(), f"a device of kind {device.type!r} has only")
        yield Kernel()
        return
    used = _scopes.enter(network, device, kernel)
    try:
        yield used
    finally:
        _scopes.leave(device)


def refuse_other(name: str | None, used: Kernel, who: str) -> None:
    """Refuse a kernel that is not the one in use.

    Raises:
        BellaError: it is not.
    """
    if name is not None and name != used.name:
        raise BellaError(_not_here(name, f"{who} {used.name!r}"))


def _not_here(name: str, reason: str) -> str:
    return (
        f"This run multiplies float32 by the kernel {name!r}, and {reason}: continue it as it was "
        "begun, or begin anew with --fresh (resume=False)."
    )


def checked(name: str, network: nn.Module) -> Kernel:
    """A kernel by its name, if it is float32 here.

    Raises:
        BellaError: it rounds to less, or is unknown.
    """
    if name == DEFAULT:
        return Kernel()
    device = device_of(network)
    _, names = SWITCHES[device.type]
    if name not in names:
        raise BellaError(_not_here(name, f"known here are {', '.join((DEFAULT, *names))}"))
    error = error_of(name, device, shapes_of(network))
    if error > TOLERANCE:
        reason = f"on this machine its relative error is {error:.1g}, above {TOLERANCE:g}"
        raise BellaError(_not_here(name, reason))
    return Kernel(name, error)


def fastest(network: nn.Module) -> Kernel:
    """The kernel for a network's Linear layers; measured once in a process for the same shapes."""
    device, shapes = device_of(network), shapes_of(network)
    if sum(count * math.prod(shape) for *shape, count in shapes) < FEWEST:
        return Kernel()
    key = (device, torch.get_num_threads(), shapes)
    if key not in _measured:
        _measured[key] = measure(device, shapes)
    return _measured[key]


def shapes_of(network: nn.Module) -> Shapes:
    """Of a network's Linear layers in float32, those that hold most of its weights; looked at once
    for each network and dtype."""
    first = next(network.parameters(), None)
    if first is None:
        return ()
    known = _shapes.get(network)
    if known is not None and known[0] == first.dtype:
        return known[1]
    counts: dict[tuple[int, int], int] = {}
    for module in network.modules():
        weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
        if weight is not None and weight.dtype == torch.float32 and weight.dim() == 2:
            shape = (weight.shape[0], weight.shape[1])
            counts[shape] = counts.get(shape, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -math.prod(item[0]) * item[1])
    found = tuple((*shape, count) for shape, count in ordered[:SHAPES])
    _shapes[network] = (first.dtype, found)
    return found


def measure(device: torch.device, shapes: Shapes) -> Kernel:
    """The fastest of a device's kernels within the tolerance, on products of these shapes."""
    _, names = SWITCHES[device.type]
    errors = {name: error_of(name, device, shapes) for name in names}
    allowed = [name for name in names if errors[name] <= TOLERANCE]
    if not allowed:
        return Kernel()
    seconds = seconds_of((DEFAULT, *allowed), device, shapes)
    best = min(allowed, key=seconds.__getitem__)
    gain = seconds[DEFAULT] / seconds[best]
    return Kernel(best, errors[best], gain) if gain >= GAIN else Kernel()


def error_of(name: str, device: torch.device, shapes: Shapes) -> float:
    """Largest relative error of a kernel on a network's shapes, forward and backward.

    A few rows and columns come first: where they show that it rounds, no more is multiplied so, and
    other threads of the process have met the switch for microseconds.
    """
    worst = 0.0
    for few in (32, None):
        for rows, columns, _ in shapes:
            x, weight, grad = _factors(rows, columns, device)
            for a, b in ((x, weight.mT), (grad, weight)):
                a, b = a[:few], b[:, :few].clone()
                with _using(name, device):
                    product = a @ b
                exact = a.double() @ b.double()
                worst = max(worst, float((product - exact).norm() / exact.norm()))
                if worst > TOLERANCE:
                    return worst
    return worst


def seconds_of(
    names: tuple[str, ...], device: torch.device, shapes: Shapes, rounds: int = 5
) -> dict[str, float]:
    """Seconds of a network's products by each kernel: the best of rounds in which they take
    turns."""
    total = dict.fromkeys(names, 0.0)
    for rows, columns, count in shapes:
        x, weight, grad = _factors(rows, columns, device)
        best = dict.fromkeys(names, math.inf)
        for number in range(rounds + 1):  # the first one warms up
            for name in names:
                with _using(name, device):
                    took = _timed(lambda: (x @ weight.mT, grad @ weight), device)  # noqa: B023
                best[name] = min(best[name], took) if number else math.inf
        for name in names:
            total[name] += count * best[name]
    return total


@contextmanager
def _using(name: str, device: torch.device) -> Iterator[None]:
    """A kernel, for a measurement."""
    switch, _ = SWITCHES[device.type]
    with _scopes.lock, torch.no_grad(), torch.autocast(device.type, enabled=False):
        before = switch.fp32_precision
        switch.fp32_precision = "ieee" if name == DEFAULT else name
        try:
            yield
        finally:
            switch.fp32_precision = before


def _factors(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, a weight (rows, columns) and an output's gradient; no other generator is used."""
    count = int(min(max(OPERATIONS / (2 * rows * columns), 32), 1024))
    source = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": source, "device": device}
    x = torch.randn(count, columns, **options)
    return x, torch.randn(rows, columns, **options), torch.randn(count, rows, **options)


def _timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device
