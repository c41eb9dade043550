"""Whether a layer computes what its class says, found out by calling it.

A Linear may hold int8 codes, a weight made from others (weight norm, spectral norm), a forward of
its own or one that somebody exchanged. What matters here is whether it is affine in its input,
y = W x + b with some W, and what W is; both are asked of the layer itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Dtypes in which a weight is stored as what it is."""

TORCHS: dict[str, type[nn.Module]] = {
    "Linear": nn.Linear,
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Conv3d": nn.Conv3d,
    "Embedding": nn.Embedding,
}


def family(module: nn.Module) -> str | None:
    """The class of torch that the module is or comes from, or Hugging Face's ``Conv1D``.

    By class and not by name: another library's ``Linear`` may be anything.
    """
    for name, known in TORCHS.items():
        if isinstance(module, known):
            return name
    return "Conv1D" if any(c.__name__ == "Conv1D" for c in type(module).__mro__) else None


def described(module: nn.Module) -> str:
    """The module's class as a message names it: with its library where the name is torch's."""
    kind = type(module)
    foreign = kind.__name__ in TORCHS and kind is not TORCHS[kind.__name__]
    return f"{kind.__module__}.{kind.__name__}" if foreign else kind.__name__


def has_own_weight(module: nn.Module) -> bool:
    """Whether ``module.weight`` is a parameter of ordinary numbers that nothing comes between.

    Not so where it holds codes, is made from other parameters, or where hooks or an exchanged
    ``forward`` may change what the layer does.
    """
    weight = module._parameters.get("weight")
    return (
        type(weight) in (nn.Parameter, Tensor)
        and weight.dtype in FLOATS  # type: ignore[union-attr]
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not is_parametrized(module)
    )


def is_plain(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether the module computes what class ``known`` does, with its own weight."""
    return computes_as(module, known) and has_own_weight(module)


def computes_as(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether the module's class has the code of class ``known``."""
    kind: Any = type(module)
    return all(
        getattr(kind, method, None) is getattr(known, method, None)
        for method in ("forward", "_conv_forward", "__call__")
    )


# ---------------------------------------------------------------- asking by calls


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Calls inside the block leave no trace: evaluation mode, buffers and random state put back."""
    modes = [(part, part.training) for part in module.modules()]
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    devices = {x.device for x in (*module.parameters(), *module.buffers()) if x.is_cuda}
    with torch.random.fork_rng(list(devices)), torch.inference_mode(False), torch.no_grad():
        try:
            for part, _ in modes:
                part.training = False
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            for buffer, value in kept:
                buffer.copy_(value)


def example_of(module: nn.Module) -> Tensor:
    """An empty tensor of the device that the module is on and the dtype that it computes in."""
    tensors = [*module.parameters(), *module.buffers()]
    floating = [x for x in tensors if x.dtype in FLOATS]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = floating[0].dtype if floating else torch.float32
    return torch.empty(0, dtype=dtype, device=device)


def wave(*shape: int, like: Tensor, pace: float = 37.0) -> Tensor:
    """Numbers in [-1, 1] without a pattern; nothing is drawn."""
    count = torch.Size(shape).numel()
    steps = torch.arange(1, count + 1, dtype=torch.float64, device="cpu")
    return torch.sin(pace * steps.sqrt() + steps).reshape(shape).to(like)


def near(one: Tensor, two: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree within a part of their largest element."""
    if one.shape != two.shape:
        return False
    one, two = one.double(), two.double()
    size = float(torch.maximum(one.abs(), two.abs()).max())
    return bool(torch.isfinite(one).all()) and float((one - two).abs().max()) <= tolerance * size


def tolerance_of(module: nn.Module) -> float:
    """How far rounding may part two ways to compute the same: codes are coarse."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in FLOATS:
        return 0.05
    return 0.02 if weight.dtype in (torch.float16, torch.bfloat16) else 1e-3


def why_not_affine(base: nn.Module, inputs: int, outputs: int) -> str | None:
    """What keeps a Linear from being y = W x + b on every row; ``None`` if it is.

    Tried on six rows: sums of inputs, rows by themselves, rows as positions, and the gradient.
    """
    like, tolerance = example_of(base), tolerance_of(base)
    if like.is_meta:
        return "has no values yet"
    x = wave(6, inputs, like=like)
    with undisturbed(base):
        try:
            rows, zero = rows_of(base, x), rows_of(base, torch.zeros_like(x))
            both, alone = rows_of(base, x + x.roll(1, 0)), rows_of(base, x[:1])
        except Exception as error:
            return f"cannot be called by itself ({first_line(error)})"
        if not (isinstance(rows, Tensor) and rows.shape == (6, outputs)):
            return f"does not return {outputs} numbers for each row"
        if not near(both, rows + rows.roll(1, 0) - zero, tolerance):
            return "is not linear in its inputs"
        if not near(alone, rows[:1], tolerance):
            return "lets one row depend on others"
        try:
            positions = base(x.view(2, 3, inputs))
        except Exception:
            positions = rows  # it takes rows alone
        if not near(positions.reshape(rows.shape), rows, tolerance):
            return "treats positions differently"
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            y = rows_of(base, leaf)
            direction = wave(6, outputs, like=y, pace=11.0)
            gradient = None
            if y.requires_grad:
                (gradient,) = torch.autograd.grad(y, leaf, direction, allow_unused=True)
        if gradient is None:
            return "passes no gradient on to its inputs"
        slope, difference = (gradient * x).sum(-1), (direction * (rows - zero)).sum(-1)
        if not near(slope, difference, 5 * tolerance):
            return "passes on a gradient that is not its own"
    return None


def rows_of(base: nn.Module, x: Tensor) -> Tensor:
    """The layer on rows (rows, in), as positions of one example if it takes no other form."""
    try:
        return base(x)
    except Exception:
        return base(x.unsqueeze(0))[0]


def dense_of(base: nn.Module, inputs: int) -> tuple[Tensor, Tensor | None]:
    """W (out, in) and b (out) of an affine layer, from its answers to 0 and to unit vectors; no b
    where the answer to 0 is 0."""
    like = example_of(base)
    with undisturbed(base):
        bias = rows_of(base, like.new_zeros(1, inputs))
        units = torch.eye(inputs, dtype=like.dtype, device=like.device).split(1024)
        weight = torch.cat([rows_of(base, some) - bias for some in units])
    return weight.mT.contiguous(), bias[0].clone() if bias.any() else None


def first_line(error: Exception) -> str:
    """An error's words on one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def exchanged_call(base: nn.Module, x: Tensor, tensors: dict[str, Any]) -> Tensor:
    """Call the layer with other tensors for its parameters.

    A twin of it is called: to exchange them in the layer itself, as ``functional_call`` does for a
    moment, would show other threads that layer with them.
    """
    own = base._parameters
    if torch.compiler.is_compiling() or not tensors.keys() <= own.keys():
        return torch.func.functional_call(base, tensors, (x,))
    twin = copy.copy(base)
    twin._parameters = own | tensors
    return twin(x)
