"""Convolutions that carry low-rank particles, over one, two or three axes.

A has the base's kernel, stride and padding, and B is pointwise on its r channels. The weight seen
as a matrix is (out, in * kernel). A pointwise Conv2d is a Linear over pixels and runs as one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis
from bella.particles.layer import compute_dtype
from bella.particles.linearity import (
    FLOATS,
    TORCHS,
    computes_as,
    example_of,
    exchanged_call,
    family,
    first_line,
    has_own_weight,
    is_plain,
    near,
    tolerance_of,
    undisturbed,
    wave,
)
from bella.posteriors.low_rank.layers import LowRankLayer
from bella.posteriors.low_rank.product import low_rank_product


class LowRankConv(LowRankLayer):
    """Conv1d, Conv2d and Conv3d. A subclass with its own ``forward``, for padding say, runs A
    through it, with its weight exchanged."""

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, rank: int, scale: float):
        if base.groups != 1:
            raise BellaError(
                f"Layer {name!r} is a convolution in {base.groups} groups, whose weight is no "
                "single matrix to be changed at low rank: leave it out of target_modules."
            )
        super().__init__(name, axis, base, rank, scale)

    def look_at_base(self, rank: int) -> str | None:
        """Whether it runs as a Linear over pixels, and else whether it is linear in its weight."""
        base = self.base
        self.pointwise = isinstance(base, nn.Conv2d) and is_pointwise(base)
        if self.pointwise:
            return None
        return why_not_linear_in_weight(base, rank)

    def matrix_shape(self) -> tuple[int, int]:
        """(in * kernel, out)."""
        return self.weight_shape[1:].numel(), self.weight_shape[0]

    def change_to_weight(self, change: Tensor) -> Tensor:
        """Unflattened to the kernel."""
        return change.reshape(self.weight_shape)

    def effective(self) -> nn.Module:
        """The base's geometry with the weight that it convolves with."""
        base: nn.Conv2d = self.base  # type: ignore[assignment]
        weight, bias = weight_in_effect(base)
        made = TORCHS[family(base) or ""](
            base.in_channels,
            base.out_channels,
            base.kernel_size,
            stride=base.stride,
            padding=base.padding,
            dilation=base.dilation,
            bias=bias is not None,
            padding_mode=base.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
        )
        made.weight = nn.Parameter(weight, False)
        if bias is not None:
            made.bias = nn.Parameter(bias, False)
        return made

    def run(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """All particles at once."""
        if not (self.pointwise and self.fused):
            return super().run(x, A, B)
        weight, bias = self.base.weight.flatten(1), self.base.bias  # type: ignore[operator]
        return low_rank_product(x, weight, bias, A, B, self.scale, channels_first=True)  # type: ignore[arg-type]

    def down(self, x: Tensor, A: Tensor) -> Tensor:
        """The base's own convolution with A for its weight."""
        kernel = A.reshape(A.shape[0], *self.weight_shape[1:])
        return self.flat(convolve_as(self.base, x, kernel))

    def flat(self, y: Tensor) -> Tensor:
        """Pixels are positions."""
        return y.movedim(1, -1).flatten(1, -2)

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """Channels back to the second axis."""
        return flat.unflatten(1, like.shape[2:]).movedim(-1, 1)


# ---------------------------------------------------------------- what a convolution computes


def has_torchs_forward(base: nn.Module) -> bool:
    """Whether the class convolves as torch's does."""
    return computes_as(base, TORCHS[family(base) or ""])


def convolve_as(base: nn.Module, x: Tensor, kernel: Tensor) -> Tensor:
    """Run ``base`` on x with ``kernel`` for its weight and no bias."""
    kernel = kernel.to(compute_dtype(x))
    if has_torchs_forward(base):
        return base._conv_forward(x, kernel, None)  # type: ignore[operator]
    exchanged = {"weight": kernel}
    if base.bias is not None:
        exchanged["bias"] = kernel.new_zeros(kernel.shape[0])
    return exchanged_call(base, x, exchanged)


def is_pointwise(base: nn.Conv2d) -> bool:
    """Whether the layer is a 1x1 convolution of stride 1 that does nothing else in its forward."""
    if (
        base.kernel_size != (1, 1)
        or tuple(base.stride) != (1, 1)
        or base.padding not in ((0, 0), 0, "valid", "same")
    ):
        return False
    if is_plain(base, nn.Conv2d):
        return True
    if not has_own_weight(base):
        return False
    x, kernel = _example(base)
    with undisturbed(base):
        try:
            return near(convolve_as(base, x, kernel), F.conv2d(x, kernel), tolerance_of(base))
        except Exception:
            return False


def why_not_linear_in_weight(base: nn.Module, rank: int = 1) -> str | None:
    """What keeps a change of the weight from being additive; ``None`` if nothing does.

    A weight that is made from others, or hooks, must leave an ordinary convolution with the weight
    that the layer shows. A forward of its own must double its output with its weight (weight
    standardisation does not), and treat each output channel by itself.
    """
    if is_plain(base, TORCHS[family(base) or ""]):
        return None
    if example_of(base).is_meta:
        return "has no values yet"
    x, kernel = _example(base)
    tolerance = tolerance_of(base)
    with undisturbed(base):
        try:
            if has_torchs_forward(base):
                weight, bias = weight_in_effect(base)
                if weight.dtype not in FLOATS:
                    return f"keeps its weight as {weight.dtype}"
                if not near(base(x), base._conv_forward(x, weight, bias), tolerance):  # type: ignore[operator]
                    return "convolves with another weight than it shows"
                return None
            if not has_own_weight(base):
                return "has a forward of its own and a weight that is no ordinary parameter"
            whole = convolve_as(base, x, kernel)
            if not near(whole, 2 * convolve_as(base, x, kernel / 2), tolerance):
                return "transforms its weight before it convolves"
            if not near(whole[:, :rank], convolve_as(base, x, kernel[:rank]), tolerance):
                return "mixes its output channels"
        except Exception as error:
            return f"cannot be called with another weight ({first_line(error)})"
    return None


def weight_in_effect(base: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight and bias that a layer shows after a call: hooks make theirs in the call."""
    with undisturbed(base):
        base(_example(base)[0])
        weight, bias = base.weight, base.bias
        return weight.detach().clone(), None if bias is None else bias.detach().clone()  # type: ignore[operator]


def _example(base: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs that no symmetry hides anything from, and a kernel."""
    like = example_of(base)
    sizes: tuple[int, ...] = base.kernel_size  # type: ignore[assignment]
    reach = [2 * d * k + 3 for d, k in zip(base.dilation, sizes, strict=True)]  # type: ignore[arg-type]
    channels: int = base.in_channels  # type: ignore[assignment]
    shape = (base.out_channels, channels // base.groups, *sizes)  # type: ignore[operator]
    return wave(1, channels, *reach, like=like), wave(*shape, like=like, pace=91.0)  # type: ignore[arg-type]
