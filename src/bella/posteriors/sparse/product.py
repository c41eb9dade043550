"""Mean and variance of a layer's output when its weight is sparse and Gaussian.

For y = W x with independent W_i ~ N(μ_i, σ_i²), E y = μ x and Var y = σ² x² (Kingma et al. 2015).
The autograd function keeps the active values alone: a dense weight and its dense gradient exist
for one layer at a time, inside the forward or the backward of that layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bella.posteriors.sparse.active import compressed, gather, scatter

Scout = Callable[[Tensor], None]
"""Sees the dense gradient of a layer's mean before it is dropped."""


@dataclass(frozen=True)
class LinearMap:
    """x (rows, in) -> W x (rows, out).

    Attributes:
        shape: (out, in).
        rows: offsets and columns of the active weights (see `bella.posteriors.sparse.active`), to
            multiply compressed rows; ``None`` to multiply a dense weight.
    """

    shape: torch.Size
    rows: tuple[Tensor, Tensor] | None = None

    def weight(self, values: Tensor, index: Tensor | None) -> Tensor:
        """The weight to multiply with."""
        if self.rows is None:
            return scatter(values, index, self.shape)
        return compressed(values, self.rows, self.shape)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product."""
        return F.linear(x, weight) if weight.layout == torch.strided else (weight @ x.T).T

    def to_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the input."""
        return grad @ weight if weight.layout == torch.strided else (weight.t() @ grad.T).T

    def to_values(self, grad: Tensor, x: Tensor, weight: Tensor, index: Tensor | None) -> Tensor:
        """Gradient of the active values."""
        if weight.layout == torch.strided:
            return gather(self.to_weight(grad, x, weight), index)
        return torch.sparse.sampled_addmm(weight, grad.T.contiguous(), x, beta=0.0).values()

    def to_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of every element of the weight."""
        return grad.T @ x


@dataclass(frozen=True)
class ConvMap:
    """x (batch, channels, h, w) -> W * x. Convolutions run dense: no library has sparse ones."""

    shape: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def weight(self, values: Tensor, index: Tensor | None) -> Tensor:
        """The dense kernel."""
        return scatter(values, index, self.shape)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def to_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the input."""
        return self._backward(grad, x, weight, (True, False, False))[0]

    def to_values(self, grad: Tensor, x: Tensor, weight: Tensor, index: Tensor | None) -> Tensor:
        """Gradient of the active values."""
        return gather(self.to_weight(grad, x, weight), index)

    def to_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of every element of the weight."""
        return self._backward(grad, x, weight, (False, True, False))[1]

    def _backward(self, grad: Tensor, x: Tensor, weight: Tensor, mask: tuple) -> tuple:
        return torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            mask,
        )


Map = LinearMap | ConvMap


class GaussianProduct(torch.autograd.Function):
    """(x, mean (k,), variance (k,)) -> mean and variance of the output."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        index: Tensor | None,
        product: Map,
        scout: Scout | None,
    ) -> tuple[Tensor, Tensor]:
        """Both products."""
        ctx.save_for_backward(x, mean, variance, index)
        ctx.product, ctx.scout = product, scout
        return (
            product.apply(x, product.weight(mean, index)),
            product.apply(x.square(), product.weight(variance, index)),
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the active values."""
        x, mean, variance, index = ctx.saved_tensors
        product: Map = ctx.product
        grads: list[Tensor | None] = [None, None, None]
        wants_x, wants_mean, wants_variance = ctx.needs_input_grad[:3]

        weight = product.weight(mean, index)
        if wants_x:
            grads[0] = product.to_input(grad_mean, x, weight)
        if ctx.scout is not None:
            dense = product.to_weight(grad_mean, x, weight)
            ctx.scout(dense)
            grads[1] = gather(dense, index)
            del dense
        elif wants_mean:
            grads[1] = product.to_values(grad_mean, x, weight, index)

        squares = x.square()
        weight = product.weight(variance, index)
        if wants_variance:
            grads[2] = product.to_values(grad_variance, squares, weight, index)
        if wants_x:
            grads[0] = grads[0] + 2 * x * product.to_input(grad_variance, squares, weight)
        return (*grads, None, None, None)
