"""What a low-rank layer computes, as autograd sees it.

    y_i = x_i W0ᵀ + s (x_i A_iᵀ) B_iᵀ

with one multiplication by W0 for all particles. W0 gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bella.particles.layer import Listener
from bella.particles.strips import in_strips, strip_product


class LowRankProduct(torch.autograd.Function):
    """y = x W0ᵀ + b + s (x Aᵀ) Bᵀ for stacked particles, with W0 and b frozen.

    One function rather than four operations: the low-rank part is added in place to the one large
    product, in the forward pass to y and in the backward pass to the gradient of x. The layout is
    changed inside, so that the output is no view and the next layer may work on it in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "rows ..."],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        A: Float[Tensor, "particles rank in"],
        B: Float[Tensor, "particles out rank"],
        scale: float,
        channels_first: bool,
    ) -> Float[Tensor, "rows ..."]:
        """The layer's output for every particle.

        Args:
            ctx: PyTorch's.
            x: (n * batch, ..., in); (n * batch, in, ...) with ``channels_first``.
            weight: W0.
            bias: b.
            A: stacked.
            B: stacked.
            scale: s.
            channels_first: the layout of images.
        """
        y, rows, flat, h = multiply(x, weight, bias, A, B, scale, channels_first)
        ctx.save_for_backward(flat, weight, A, B, h)
        ctx.scale, ctx.channels_first, ctx.shape = scale, channels_first, rows
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B; the base is frozen."""
        x, weight, A, B, h = ctx.saved_tensors
        grad = grad.movedim(1, -1) if ctx.channels_first else grad
        grad = grad.reshape(len(A), -1, grad.shape[-1])
        # Of the two layouts of a product with few columns, the one that reads both factors row by
        # row takes an eighth to a half of the other's time on a CPU.
        grad_h = torch.bmm(grad, B.mT.contiguous().mT).mul_(ctx.scale)
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.matmul(grad, weight)
            grad_x = grad_x.baddbmm_(grad_h, A).view(ctx.shape)
            grad_x = grad_x.movedim(-1, 1) if ctx.channels_first else grad_x
        if ctx.needs_input_grad[3]:
            grad_A = torch.bmm(grad_h.mT, x)
        if ctx.needs_input_grad[4]:
            grad_B = torch.bmm(h.mT, grad).mul_(ctx.scale).mT.contiguous()
        return grad_x, None, None, grad_A, grad_B, None, None


def multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    channels_first: bool,
) -> tuple[Tensor, torch.Size, Tensor, Tensor]:
    """The product, without gradients; arguments as `LowRankProduct.forward` has them.

    Returns:
        y; the shape of x with its channels last; x as (particles, positions, in); and x Aᵀ.
    """
    rows = x.movedim(1, -1) if channels_first else x
    flat = rows.reshape(len(A), -1, rows.shape[-1])
    shape = (*rows.shape[:-1], len(weight))
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    if channels_first:
        images = (shape[0], shape[-1], *shape[1:-1])
        y = torch.empty(images, memory_format=torch.channels_last, **options)
        table = y.movedim(1, -1).view(-1, shape[-1])
    else:
        y = torch.empty(shape, **options)
        table = y.view(-1, shape[-1])
    if in_strips(flat, weight, bias):
        table.copy_(strip_product(flat, weight, bias).flatten(0, 1))
    elif bias is None:
        torch.mm(flat.flatten(0, 1), weight.mT, out=table)
    else:
        torch.addmm(bias, flat.flatten(0, 1), weight.mT, out=table)
    h = torch.bmm(flat, A.mT)
    table.view(len(A), -1, shape[-1]).baddbmm_(h, B.mT, alpha=scale)
    return y, rows.shape, flat, h


def low_rank_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    *,
    channels_first: bool = False,
) -> Tensor:
    """`LowRankProduct` in the dtype of the factors, which is the one products run in here."""
    dtype = A.dtype
    bias = None if bias is None else bias.to(dtype)
    given = x.to(dtype), weight.to(dtype), bias, A, B, scale, channels_first
    return LowRankProduct.apply(*given) if torch.is_grad_enabled() else multiply(*given)[0]


class Heard(torch.autograd.Function):
    """An output as it is, whose gradient is told to a listener together with the input.

    A hook would do as well, but would keep the input alive where it is computed again in backward.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, listener: Listener, ran: tuple[int, ...]) -> Tensor:
        """``y``, the output for the input ``x`` of the particles that ran."""
        ctx.save_for_backward(x)
        ctx.listener, ctx.ran = listener, ran
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient as it is."""
        ctx.listener(*ctx.saved_tensors, grad, ctx.ran)
        return grad, None, None, None
