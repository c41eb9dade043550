"""Products of a few rows with a large weight, strip by strip, to the same bits.

A token that n particles write is a product of n rows with every weight. A float32 product of 4 to
15 rows on a CPU reads the weight once for every three rows or so, and a weight that is larger than
the processor's cache comes from memory each time. Taken in strips of a few of its rows it comes
from memory once: who reads a strip again finds it in the cache. A strip is a view, so nothing is
laid out, held or put back.

Every number is the same sum in the same order. That is seen and not believed: the first product of
a shape, a number of rows and of threads is made both ways, and where the two are not equal bit for
bit it stays whole for good. No clock is asked, so a seed gives one answer on a busy machine too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.kernels import SWITCHES

ROWS = range(4, 16)
"""So many rows are multiplied in strips: fewer read the weight once, more take other kernels."""
LARGE = 2**18
"""Numbers in a thread's share of a weight (1 MB) from which it counts as large: what is smaller
stays in that thread's cache."""
STRIP = 2**15
"""Numbers in a strip, about."""

_same: dict[tuple[Any, ...], bool] = {}
_lock = threading.Lock()
_open: WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, Any]]]] = WeakKeyDictionary()


@contextmanager
def few_rows(network: nn.Module) -> Iterator[None]:
    """Inside, the network's large Linear layers multiply a few rows in strips, without gradients.

    Their numbers are the same, bit for bit, so other threads may run the network meanwhile. Scopes
    may be nested and be open in several threads; the last to close puts the layers back.

    Args:
        network: with its particle layers in place, which multiply in strips by themselves. A layer
            whose ``forward`` is not that of its class stays as it is.
    """
    with _lock:
        count, patched = _open.get(network, (0, []))
        if not count:
            patched = [(layer, partial(_forward, layer.forward)) for layer in _large(network)]
            for layer, forward in patched:
                vars(layer)["forward"] = forward
        _open[network] = count + 1, patched
    try:
        yield
    finally:
        with _lock:
            count, patched = _open.pop(network)
            if count > 1:
                _open[network] = count - 1, patched
            else:
                for layer, forward in patched:
                    if vars(layer).get("forward") is forward:  # else somebody exchanged it
                        del vars(layer)["forward"]


def _large(network: nn.Module) -> list[nn.Module]:
    """Linear layers with large weights on a CPU."""
    return [
        module
        for module in network.modules()
        if getattr(type(module), "forward", None) is nn.Linear.forward
        and "forward" not in vars(module)
        and (weight := module._parameters.get("weight")) is not None
        and is_large(weight)
        and weight.device.type == "cpu"
    ]


def is_large(weight: Tensor) -> bool:
    """Whether a weight is worth strips on this many threads."""
    return weight.numel() >= LARGE * torch.get_num_threads()


def _forward(usual: Any, input: Tensor) -> Tensor:
    layer = usual.__self__
    if not torch.is_grad_enabled() and in_strips(input, layer.weight, layer.bias):
        return strip_product(input, layer.weight, layer.bias)
    return usual(input)


def in_strips(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `strip_product` is to make x Wᵀ + b, which wants no gradients.

    Args:
        x: (..., in).
        weight: W, (out, in).
        bias: b, (out,).
    """
    if torch.compiler.is_compiling() or not is_large(weight):
        return False
    rows = math.prod(x.shape[:-1])
    if rows not in ROWS or torch.is_autocast_enabled("cpu"):
        return False
    if not (_is_usual(x) and _is_usual(weight) and (bias is None or _is_usual(bias))):
        return False
    # Kernels may go by all of this.
    switch, threads = SWITCHES["cpu"][0].fp32_precision, torch.get_num_threads()
    key = (rows, *weight.shape, bias is None, weight.data_ptr() % 64, switch, threads)
    if key not in _same:
        _same[key] = torch.backends.mkl.is_available() and same_bits(rows, weight, bias)
    return _same[key]


def _is_usual(x: Tensor) -> bool:
    """Float32 in the usual order on a CPU, of no class that may multiply in a way of its own."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous()
    )


def strip_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b in strips of W's rows: (..., out).

    Args:
        x: (..., in), contiguous.
        weight: W, (out, in), contiguous.
        bias: b, (out,).
    """
    outputs, inputs = weight.shape
    strip = min(max(STRIP // inputs // 16, 1) * 16, outputs)
    strips = outputs // strip
    whole = strips * strip
    rows = x.reshape(-1, inputs)
    each = rows.expand(strips, *rows.shape)
    tall = weight[:whole].view(strips, strip, inputs).mT
    if bias is None:
        y = torch.bmm(each, tall)
    else:
        y = torch.baddbmm(bias[:whole].view(strips, 1, strip), each, tall)
    y = y.transpose(0, 1)
    if whole == outputs:
        return y.reshape(*x.shape[:-1], outputs)
    # Fewer columns than a strip's may take another kernel, so the last strip begins further up.
    last = F.linear(rows, weight[-strip:], None if bias is None else bias[-strip:])
    y = torch.cat((y.reshape(len(rows), whole), last[:, whole - outputs :]), 1)
    return y.view(*x.shape[:-1], outputs)


@torch.no_grad()
def same_bits(rows: int, weight: Tensor, bias: Tensor | None) -> bool:
    """Make a product of so many rows both ways: is it the same?"""
    # Nothing drawn: a proof may be running, in which torch draws means.
    numbers = torch.arange(rows * weight.shape[1], dtype=weight.dtype, device=weight.device)
    x = numbers.sin().view(rows, -1)
    return torch.equal(strip_product(x, weight, bias), F.linear(x, weight, bias))
