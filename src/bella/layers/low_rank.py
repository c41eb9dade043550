"""Low-rank particles: n changes B_i A_i of one frozen network (Bella, Eq. 3).

At an adapted layer particle i computes

    y_i = x_i W0ᵀ + s (x_i A_iᵀ) B_iᵀ,        s = alpha / rank   (rsLoRA: alpha / √rank)

with one multiplication by W0 for all particles. W0 gets no gradient.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bella.errors import BellaError
from bella.layers import targets
from bella.layers.axis import ParticleAxis
from bella.layers.base import Factors, Listener, ParticleLayer, Site, compute_dtype
from bella.layers.copies import copies_of
from bella.posterior import Posterior, check_prefix

Init = Literal["kaiming", "xavier", "normal"]


class LowRankProduct(torch.autograd.Function):
    """y = x W0ᵀ + b + s (x Aᵀ) Bᵀ for stacked particles, with W0 and b frozen.

    One function rather than four operations: the low-rank part is added in place to the one large
    product, in the forward pass to y and in the backward pass to the gradient of x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "particles rows in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        A: Float[Tensor, "particles rank in"],
        B: Float[Tensor, "particles out rank"],
        scale: float,
    ) -> Float[Tensor, "particles rows out"]:
        """The layer's output for every particle."""
        h = torch.bmm(x, A.mT)
        y = F.linear(x, weight, bias)
        y.baddbmm_(h, B.mT, alpha=scale)
        ctx.save_for_backward(x, weight, A, B, h)
        ctx.scale = scale
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B; the base is frozen."""
        x, weight, A, B, h = ctx.saved_tensors
        grad_h = torch.bmm(grad, B).mul_(ctx.scale)
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.matmul(grad, weight)
            grad_x.baddbmm_(grad_h, A)
        if ctx.needs_input_grad[3]:
            grad_A = torch.bmm(grad_h.mT, x)
        if ctx.needs_input_grad[4]:
            grad_B = torch.bmm(grad.mT, h).mul_(ctx.scale)
        return grad_x, None, None, grad_A, grad_B, None


def low_rank_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> Tensor:
    """`LowRankProduct` in the dtype of the factors, which is the one products run in here."""
    bias = None if bias is None else bias.to(A.dtype)
    return LowRankProduct.apply(x.to(A.dtype), weight.to(A.dtype), bias, A, B, scale)


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
            listener, seen, ran = self.listener, x.detach(), self.axis.chosen
            y.register_hook(lambda grad: listener(seen, grad, ran))
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
        flat = x.reshape(len(A), -1, x.shape[-1])
        y = low_rank_product(flat, weight, self.base.bias, A, B, self.scale)  # type: ignore[arg-type]
        return y.view(*x.shape[:-1], y.shape[-1])

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
        pixels = x.permute(0, 2, 3, 1)
        flat = pixels.reshape(len(A), -1, x.shape[1])
        weight = self.base_weight().flatten(1)
        y = low_rank_product(flat, weight, self.base.bias, A, B, self.scale)  # type: ignore[arg-type]
        return y.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)

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


def refuse_bypassed(network: nn.Module, name: str) -> None:
    """Refuse layers whose parent reads their weight and never calls them.

    Raises:
        BellaError: the layer stands in ``nn.MultiheadAttention``, or its weight is tied.
    """
    parts = name.split(".")
    for depth in range(len(parts)):
        if isinstance(network.get_submodule(".".join(parts[:depth])), nn.MultiheadAttention):
            raise BellaError(
                f"Layer {name!r} stands in nn.MultiheadAttention, which reads its weight and never "
                "calls it, so its particles would be ignored: target other layers."
            )
    weight = getattr(network.get_submodule(name), "weight", None)
    sharing = [
        other
        for other, module in network.named_modules(remove_duplicate=False)
        if other != name and weight is not None and getattr(module, "weight", None) is weight
    ]
    if sharing:
        raise BellaError(
            f"Layer {name!r} shares its weight with {sharing[0]!r}, which a merged particle would "
            "change as well: target other layers, or untie the two first."
        )


def leave_fused_path(network: nn.Module) -> None:
    """Keep ``nn.TransformerEncoderLayer`` on the path that calls its layers.

    In evaluation it otherwise hands its weights to one fused kernel, past any particle layer.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(child, ParticleLayer) for child in module.modules()
        ):
            module.activation_relu_or_gelu = 0


class LowRankPosterior(Posterior):
    """n low-rank changes of one frozen network. Made by `low_rank`."""

    kind = "low_rank"


def low_rank(
    network: nn.Module,
    particles: int = 5,
    rank: int = 4,
    target_modules: targets.Targets = ("fc1", "fc2"),
    *,
    alpha: float | None = None,
    rslora: bool = False,
    modules_to_save: targets.Targets = (),
    init: Init = "kaiming",
    gain: float = 1.0,
    b_std: float = 0.0,
    head_init: Literal["copy", "reset"] = "copy",
    shared_prefix: bool | str = True,
    seed: int = 0,
) -> LowRankPosterior:
    """Give a network n particles that differ by low-rank changes of chosen layers.

    The network is adapted in place and its own weights are frozen.

    Args:
        network: any ``nn.Module`` whose inputs have the batch as first axis.
        particles: number n of particles.
        rank: rank r of each change; r (in + out) parameters a layer and particle.
        target_modules: layers to change: names, suffixes or regular expressions; Linear, Conv2d
            and Hugging Face's Conv1D. Empty for none (then ``modules_to_save`` alone differ).
        alpha: the change is (alpha / rank) B A; ``None`` means alpha = rank, a scale of 1.
        rslora: scale by alpha / √rank instead (Kalajdzievski 2023).
        modules_to_save: heads of which each particle trains a full copy.
        init: distribution of A: ``kaiming`` uniform with a = √5 (LoRA's), ``xavier`` uniform, or
            ``normal`` with standard deviation 1 / √in.
        gain: factor on A's start.
        b_std: standard deviation of B's start; 0 starts every particle at the base network.
        head_init: heads start as copies of the network's, or ``reset`` by their own
            ``reset_parameters``, differently for each particle.
        shared_prefix: run what comes before the first adapted block once for all particles; the
            name of a module opens the axis there; ``False`` opens it at the inputs.
        seed: decides every start; particle i starts the same whatever ``particles`` is.

    Returns:
        The posterior; call it as the network was called.

    Raises:
        BellaError: unknown or unsuitable targets, a rank that does not fit, no particles.

    Source:
        Doan et al., Bayesian Low-Rank LeArning (Bella), Eq. 3; Hu et al. 2021 (LoRA).
    """
    axis = ParticleAxis(particles)
    if init not in ("kaiming", "xavier", "normal"):
        raise BellaError(f"init={init!r} is unknown: choose 'kaiming', 'xavier' or 'normal'.")
    if not isinstance(rank, int) or rank < 1:
        raise BellaError(f"rank={rank!r}: give a whole number of at least 1.")
    scale = (rank if alpha is None else alpha) / (math.sqrt(rank) if rslora else rank)
    heads = targets.find(network, modules_to_save, what="modules_to_save")
    names = [
        name
        for name in targets.find(network, target_modules)
        if not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    if not names and not heads:
        raise BellaError("Nothing to train: name layers in target_modules or modules_to_save.")

    check_prefix(network, shared_prefix)
    # Every check comes before the first change: a refused network is left as it was.
    layers: dict[str, ParticleLayer] = {}
    for name in names:
        refuse_bypassed(network, name)
        base = network.get_submodule(name)
        layers[name] = layer_kind(name, base)(name, axis, base, rank, scale)
    for name in heads:
        head = network.get_submodule(name)
        if not any(True for _ in head.parameters()):
            raise BellaError(
                f"modules_to_save names {name!r}, a {type(head).__name__} without parameters: "
                "name a module that has some."
            )
        layers[name] = copies_of(name, axis, head, in_kernel=not names)

    for particle in range(particles):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + particle)
        for layer in layers.values():
            if isinstance(layer, LowRankLayer):
                start_(layer.A.data[particle], init, gain, generator)
                if b_std:
                    layer.B.data[particle].copy_(
                        b_std * torch.randn(layer.B.shape[1:], generator=generator)
                    )
    if head_init == "reset":
        for index, name in enumerate(heads):
            layers[name].reset(seed * 1_000_003 + index)  # type: ignore[operator]

    network.requires_grad_(False)
    for name, layer in layers.items():
        targets.replace(network, name, layer)
    leave_fused_path(network)
    settings = {
        "particles": particles,
        "rank": rank,
        "target_modules": targets.as_list(target_modules),
        "alpha": alpha,
        "rslora": rslora,
        "modules_to_save": targets.as_list(modules_to_save),
        "shared_prefix": shared_prefix,
    }
    return LowRankPosterior(network, axis, settings, shared_prefix=shared_prefix)


def start_(A: Tensor, init: Init, gain: float, generator: torch.Generator) -> None:
    """Draw one particle's A (rank, in) in place.

    Drawn on the CPU, so that one seed gives one start on every device.
    """
    rank, inputs = A.shape
    draw = torch.empty(rank, inputs, dtype=torch.float32)
    if init == "kaiming":
        nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator)
    elif init == "xavier":
        nn.init.xavier_uniform_(draw, generator=generator)
    else:
        nn.init.normal_(draw, std=1 / math.sqrt(inputs), generator=generator)
    A.copy_(gain * draw)
