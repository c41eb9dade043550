"""Layers that carry low-rank particles beside a frozen weight.

At an adapted layer particle i computes

    y_i = x_i W0ᵀ + s (x_i A_iᵀ) B_iᵀ

with one multiplication by W0 for all particles. W0 gets no gradient.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis
from bella.particles.layer import Factors, Listener, ParticleLayer, Site, compute_dtype
from bella.posteriors.low_rank.product import Heard, low_rank_product


class LowRankLayer(ParticleLayer):
    """A frozen layer plus n low-rank changes; subclasses say how its kind multiplies.

    Args:
        name: the layer's name in the network.
        axis: the posterior's particle axis.
        base: the frozen layer.
        rank: rank of each change.
        scale: alpha / rank or alpha / √rank.
    """

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, rank: int, scale: float):
        super().__init__(name, axis)
        self.base = base
        self.scale = scale
        self.listener: Listener | None = None
        inputs, outputs = self.matrix_shape()
        if not 1 <= rank <= min(inputs, outputs):
            raise BellaError(
                f"rank={rank} does not fit layer {name!r} of {inputs} inputs and {outputs} "
                f"outputs: choose a rank from 1 to {min(inputs, outputs)}."
            )
        weight = self.base_weight()
        options: dict[str, Any] = {"device": weight.device, "dtype": factor_dtype(weight)}
        self.A = nn.Parameter(torch.zeros(axis.particles, rank, inputs, **options))
        self.B = nn.Parameter(torch.zeros(axis.particles, outputs, rank, **options))

    # ------------------------------------------------------------ what a kind of layer answers

    def base_weight(self) -> Tensor:
        """The base's weight as it stores it."""
        return self.base.weight  # type: ignore[return-value]

    @abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """(in, out) of the weight seen as a matrix out x in."""

    @abstractmethod
    def change_to_weight(self, change: Tensor) -> Tensor:
        """A change (out, in) in the layout of `base_weight`."""

    @abstractmethod
    def down(self, x: Tensor, A: Tensor) -> Tensor:
        """The layer with A (k, in) for its weight and no bias: (rows, positions, k)."""

    @abstractmethod
    def flat(self, y: Tensor) -> Tensor:
        """An output or its gradient as (rows, positions, out)."""

    @abstractmethod
    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """(rows, positions, out) in the layout of the output ``like`` (with other rows)."""

    # ------------------------------------------------------------ what they share

    def forward(self, x: Tensor) -> Tensor:
        """Run the particles that the axis chose; open the axis if it is not open yet."""
        A, B = self.axis.select(self.A), self.axis.select(self.B)
        dtype = compute_dtype(x)
        A, B = A.to(dtype), B.to(dtype)
        if self.axis.carries_particles(x):
            y = self.run(x, A, B)
        else:
            y = self.run_shared(x, A, B)
            self.axis.is_open = True
        if self.listener is not None and y.requires_grad:
            # A view cannot be marked as changed in place.
            y = y.clone() if y._is_view() else y
            y = Heard.apply(y, x.detach(), self.listener, self.axis.chosen)
        return y

    def run(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Output for rows that carry particles."""
        y = self.base(x)
        h = torch.stack([self.down(part, a) for part, a in zip(x.chunk(len(A)), A, strict=True)])
        flat = self.flat(y)
        return self.unflat(self.up(h, B, flat.unflatten(0, (len(A), -1))), y)

    def run_shared(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Output for rows shared by all particles: W0 x once, then the axis opens."""
        y = self.base(x)
        h = self.down(x, A.flatten(0, 1))  # rows, positions, n * rank
        h = h.unflatten(-1, A.shape[:2]).movedim(-2, 0)
        flat = self.flat(y)
        return self.unflat(self.up(h, B, flat.expand(len(A), *flat.shape)), y)

    def up(self, h: Tensor, B: Tensor, onto: Tensor) -> Tensor:
        """Onto + s h Bᵀ; h (n, rows, positions, rank), onto (n, rows, positions, out)."""
        rows = torch.baddbmm(
            onto.flatten(1, 2),
            h.flatten(1, 2).to(onto.dtype),
            B.mT.to(onto.dtype),
            alpha=self.scale,
        )
        return rows.reshape(-1, *onto.shape[2:])

    def sites(self) -> list[Site]:
        """The factors."""
        return [Factors(self.name, self.A, self.B, self.scale, self)]

    def change(self, particle: int | None) -> Float[Tensor, "out in"]:
        """s B_i A_i of one particle, or the mean of s B_i A_i over all of them (never the mean of
        B times the mean of A)."""
        A, B = self.A.detach(), self.B.detach()
        if particle is not None:
            return self.scale * B[particle] @ A[particle]
        mean = B.transpose(0, 1).flatten(1) @ A.flatten(0, 1)  # sum over particles and ranks
        return self.scale / self.axis.particles * mean

    def merged(self, particle: int | None) -> nn.Module:
        """The base with one particle's (or the mean) change added to its weight."""
        plain = copy.deepcopy(self.base)
        weight = self.base_weight()
        change = self.change_to_weight(self.change(particle))
        merged = (weight.detach().to(change.dtype) + change).to(weight.dtype)
        plain.weight = nn.Parameter(merged, requires_grad=False)
        return plain

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        n, rank, _ = self.A.shape
        return f"particles={n}, rank={rank}, scale={self.scale:g}"


def factor_dtype(weight: Tensor) -> torch.dtype:
    """Factors are kept in float32 or better: bfloat16 loses the small steps of an optimiser."""
    return weight.dtype if weight.dtype == torch.float64 else torch.float32


class LowRankLinear(LowRankLayer):
    """Linear layers, Hugging Face's Conv1D (a Linear that stores its weight transposed) too."""

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, rank: int, scale: float):
        self.transposed = type(base).__name__ == "Conv1D"
        super().__init__(name, axis, base, rank, scale)

    def matrix_shape(self) -> tuple[int, int]:
        """(in, out)."""
        first, second = self.base_weight().shape
        return (first, second) if self.transposed else (second, first)

    def change_to_weight(self, change: Tensor) -> Tensor:
        """Transposed for Conv1D."""
        return change.mT if self.transposed else change

    def run(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """All particles at once."""
        if not (self.transposed or type(self.base).forward is nn.Linear.forward):
            return super().run(x, A, B)  # a quantised base, say, multiplies in its own way
        weight = self.base_weight().mT if self.transposed else self.base_weight()
        return low_rank_product(x, weight, self.base.bias, A, B, self.scale)  # type: ignore[arg-type]

    def down(self, x: Tensor, A: Tensor) -> Tensor:
        """X Aᵀ."""
        return self.flat(F.linear(x, A.to(x.dtype)))

    def flat(self, y: Tensor) -> Tensor:
        """All but the first and last axis are positions."""
        return y.reshape(y.shape[0], -1, y.shape[-1])

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """The positions back on their axes."""
        return flat.reshape(-1, *like.shape[1:])


class LowRankConv2d(LowRankLayer):
    """Convolutions: A has the base's kernel, stride and padding, B is 1x1 on its r channels.

    The weight seen as a matrix is (out, in * height * width). A pointwise convolution is a Linear
    over pixels and runs as one. For other kernels A runs through the base's own ``forward`` with
    its weight exchanged, so that a subclass with its own padding pads A's way too.
    """

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Conv2d, rank: int, scale: float):
        if base.groups != 1:
            raise BellaError(
                f"Layer {name!r} is a convolution in {base.groups} groups, whose weight is no "
                "single matrix to be changed at low rank: leave it out of target_modules."
            )
        super().__init__(name, axis, base, rank, scale)
        self.pointwise = is_pointwise(base)
        if not self.pointwise and not is_linear_in_weight(base):
            raise BellaError(
                f"Layer {name!r} ({type(base).__name__}) transforms its weight before it convolves,"
                " so a change of the weight is not additive: leave it out of target_modules."
            )

    def matrix_shape(self) -> tuple[int, int]:
        """(in * height * width, out)."""
        weight = self.base_weight()
        return weight[0].numel(), weight.shape[0]

    def change_to_weight(self, change: Tensor) -> Tensor:
        """Unflattened to the kernel."""
        return change.reshape(self.base_weight().shape)

    def run(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """All particles at once."""
        if not self.pointwise:
            return super().run(x, A, B)
        weight, bias = self.base_weight().flatten(1), self.base.bias
        return low_rank_product(x, weight, bias, A, B, self.scale, channels_first=True)  # type: ignore[arg-type]

    def down(self, x: Tensor, A: Tensor) -> Tensor:
        """The base's own convolution with A for its weight."""
        kernel = A.reshape(A.shape[0], *self.base_weight().shape[1:])
        return self.flat(convolve_as(self.base, x, kernel))

    def flat(self, y: Tensor) -> Tensor:
        """Pixels are positions."""
        return y.permute(0, 2, 3, 1).flatten(1, 2)

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """Channels back to the second axis."""
        return flat.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)


def convolve_as(base: nn.Module, x: Tensor, kernel: Tensor) -> Tensor:
    """Run ``base`` on x with ``kernel`` for its weight and no bias."""
    exchanged = {"weight": kernel.to(compute_dtype(x))}
    if base.bias is not None:
        exchanged["bias"] = kernel.new_zeros(kernel.shape[0])
    return torch.func.functional_call(base, exchanged, (x,))


def is_pointwise(base: nn.Conv2d) -> bool:
    """Whether the layer is a 1x1 convolution of stride 1 that does nothing else in its forward."""
    if (
        base.kernel_size != (1, 1)
        or tuple(base.stride) != (1, 1)
        or base.padding not in ((0, 0), 0)
    ):
        return False
    return type(base).forward is nn.Conv2d.forward or _agrees(
        base, lambda x, w: F.conv2d(x, w), base.weight
    )


def is_linear_in_weight(base: nn.Conv2d) -> bool:
    """Whether doubling the weight doubles the output (weight standardisation, say, does not)."""
    if type(base).forward is nn.Conv2d.forward:
        return True
    return _agrees(base, lambda x, w: 2 * convolve_as(base, x, w / 2), base.weight)


@torch.no_grad()
def _agrees(base: nn.Conv2d, other: Any, weight: Tensor) -> bool:
    size = 2 * max(base.kernel_size) + 3
    ramp = torch.linspace(-1, 1, base.in_channels * size * size, device=weight.device)
    x = torch.sin(37 * ramp).reshape(1, base.in_channels, size, size).to(weight.dtype)
    kernel = torch.sin(91 * torch.arange(weight.numel(), device=weight.device))
    kernel = kernel.reshape(weight.shape).to(weight.dtype)
    ours, theirs = convolve_as(base, x, kernel), other(x, kernel)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2)


KINDS: tuple[tuple[str, type[LowRankLayer]], ...] = (
    ("Linear", LowRankLinear),
    ("Conv1D", LowRankLinear),
    ("Conv2d", LowRankConv2d),
)
"""Which layer carries low-rank particles for which class of base (itself or an ancestor)."""


def layer_kind(name: str, module: nn.Module) -> type[LowRankLayer]:
    """The particle layer for a base module.

    Raises:
        BellaError: this class of module has none.
    """
    ancestors = [ancestor.__name__ for ancestor in type(module).__mro__]
    for known, kind in KINDS:
        if known in ancestors:
            return kind
    raise BellaError(
        f"target_modules names {name!r}, a {type(module).__name__}: low-rank particles exist for "
        "Linear, Conv1D and Conv2d layers, so name those inside it."
    )
