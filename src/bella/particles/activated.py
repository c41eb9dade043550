"""Activation functions that are written as several operations.

Each of these operations keeps tensors of the network's widest layers for backward, where each runs
another one: of x σ(1.702 x), CLIP's, three are kept and five run. Here the input alone is kept, and
the derivative is one of PyTorch's own functions. The output is the module's, bit for bit.

Which derivative a module has is not taken from its name: autograd's, on a grid, must be it.

    quick GELU    d/dx x σ(ax) = silu'(ax), a = 1.702
    tanh GELU     d/dx x (1 + tanh(√(2/π) (x + .044715 x³))) / 2
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from bella.particles.attended import transformed
from bella.particles.linearity import undisturbed

aten = torch.ops.aten

DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quick": lambda grad, x: aten.silu_backward(grad, 1.702 * x),
    "tanh": lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh"),
}
"""By name: from an output's gradient and the input to the input's gradient."""

ASKED = re.compile("gelu|swish", re.IGNORECASE)
"""In the names of classes that are asked; PyTorch's own run one operation already."""


class Activated(torch.autograd.Function):
    """An activation function that keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], kind: str) -> Tensor:
        """What the function answers."""
        ctx.save_for_backward(x)
        ctx.kind = kind
        return function(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the input."""
        (x,) = ctx.saved_tensors
        return DERIVATIVES[ctx.kind](grad, x.to(grad.dtype)).to(x.dtype), None, None


class Activation(nn.Module):
    """In the place of an activation function.

    Args:
        base: the module itself.
        kind: of `DERIVATIVES`.
    """

    def __init__(self, base: nn.Module, kind: str):
        super().__init__()
        self.base = base
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """What the module answers."""
        if (
            torch.is_grad_enabled()
            and x.requires_grad
            and not torch.compiler.is_compiling()
            and not transformed()
        ):
            return Activated.apply(x, self.base, self.kind)
        return self.base(x)


def activations(network: nn.Module, beside: Collection[str] = ()) -> dict[str, nn.Module]:
    """What stands in the place of a network's activation functions, by their names.

    Args:
        network: looked at, and not changed.
        beside: modules that are left alone, with all that stands inside them.
    """
    found: dict[str, nn.Module] = {}
    made: dict[int, nn.Module] = {}
    for name, module in network.named_modules():
        if any(name == other or name.startswith(f"{other}.") for other in beside):
            continue
        if name and (kind := derivative_of(module)) is not None:
            found[name] = made.setdefault(id(module), Activation(module, kind))
    return found


def derivative_of(module: nn.Module) -> str | None:
    """Which of `DERIVATIVES` a module's is; ``None`` for another, or where it cannot be told."""
    kind = type(module)
    if not ASKED.search(kind.__name__) or kind.__module__.startswith("torch."):
        return None
    if module._modules or module._parameters or module._buffers or module._forward_hooks:
        return None
    if module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module):
        return None
    grid = torch.linspace(-8, 8, 161, dtype=torch.float64, device="cpu").requires_grad_()
    try:
        with undisturbed(module), torch.enable_grad():
            said = module(grid)
            (slope,) = torch.autograd.grad(said.sum(), grid)
    except Exception:  # whatever a module raises: it is no such function
        return None
    if said.shape != grid.shape or said.dtype != grid.dtype:
        return None
    x = grid.detach()
    for name, derivative in DERIVATIVES.items():
        if torch.allclose(derivative(torch.ones_like(x), x), slope, rtol=0, atol=1e-9):
            return name
    return None
