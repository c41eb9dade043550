"""Layers that carry low-rank particles beside a frozen weight.

At an adapted layer particle i computes

    y_i = x_i W0ᵀ + s (x_i A_iᵀ) B_iᵀ

with one multiplication by W0 for all particles. W0 gets no gradient.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.answers import stand_in_for, take_facts
from bella.particles.attended import transformed
from bella.particles.axis import ParticleAxis
from bella.particles.layer import Factors, Listener, ParticleLayer, Site, compute_dtype
from bella.particles.linearity import (
    dense_of,
    described,
    example_of,
    family,
    has_own_weight,
    is_plain,
    near,
    tolerance_of,
    undisturbed,
    wave,
    why_not_affine,
)
from bella.posteriors.low_rank.product import Heard, low_rank_product


class LowRankLayer(ParticleLayer):
    """A frozen layer plus n low-rank changes; subclasses say how its kind multiplies.

    Args:
        name: the layer's name in the network.
        axis: the posterior's particle axis.
        base: the frozen layer; looked at and called, and not changed.
        rank: rank of each change.
        scale: alpha / rank or alpha / √rank.

    Attributes:
        plain: whether the base is exactly the product of its class with the weight that it holds.
            Otherwise (int8 codes, weight norm, a forward of its own, hooks) the base is called, and
            merging asks it for the weight that it multiplies with in effect.

    Raises:
        BellaError: the rank does not fit, or the base does not multiply linearly.
    """

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, rank: int, scale: float):
        super().__init__(name, axis)
        self.base = base
        self.scale = scale
        self.listener: Listener | None = None
        self.plain = has_own_weight(base)
        with undisturbed(base):  # a weight that is made from others is made when it is read
            weight = base.weight
        if not isinstance(weight, Tensor):
            raise BellaError(
                f"Layer {name!r} ({described(base)}) has no weight tensor: leave it out of "
                "target_modules."
            )
        self.weight_shape = weight.shape
        self.weight_dtype = weight.dtype
        inputs, outputs = self.matrix_shape()
        if not 1 <= rank <= min(inputs, outputs):
            raise BellaError(
                f"rank={rank} does not fit layer {name!r} of {inputs} inputs and {outputs} "
                f"outputs: choose a rank from 1 to {min(inputs, outputs)}."
            )
        if (reason := self.look_at_base(rank)) is not None:
            raise BellaError(
                f"Layer {name!r} ({described(base)}) {reason}, so a change of its weight is not "
                "additive: leave it out of target_modules."
            )
        like = example_of(base)
        options: dict[str, Any] = {"device": like.device, "dtype": factor_dtype(like)}
        self.A = nn.Parameter(torch.zeros(axis.particles, rank, inputs, **options))
        self.B = nn.Parameter(torch.zeros(axis.particles, outputs, rank, **options))
        take_facts(self, base)

    # ------------------------------------------------------------ what a kind of layer answers

    @abstractmethod
    def look_at_base(self, rank: int) -> str | None:
        """Decide `plain`, and say what keeps the base from being linear; ``None`` if it is."""

    @abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """(in, out) of the weight seen as a matrix out x in."""

    @abstractmethod
    def change_to_weight(self, change: Tensor) -> Tensor:
        """A change (out, in) in the layout of the base's weight."""

    @abstractmethod
    def effective(self) -> nn.Module:
        """A plain layer of torch that computes what a base that is not plain does."""

    @abstractmethod
    def down(self, x: Tensor, A: Tensor) -> Tensor:
        """The layer with A (k, in) for its weight and no bias: (rows, positions, k)."""

    @abstractmethod
    def flat(self, y: Tensor) -> Tensor:
        """An output or its gradient as (rows, positions, out)."""

    @abstractmethod
    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """(rows, positions, out) in the layout of the output ``like`` (with other rows)."""

    # ------------------------------------------------------------ what a parent may ask

    @property
    def weight(self) -> Tensor:
        """The weight's shape, dtype and device; see `bella.particles.answers`."""
        held = self.base._parameters.get("weight") if self.plain else None
        dtype = self.weight_dtype if held is None else held.dtype
        device = self.A.device
        return stand_in_for(self.name, self.weight_shape, dtype=dtype, device=device)

    @property
    def bias(self) -> Tensor | None:
        """The base's, which all particles share."""
        return self.base.bias  # type: ignore[return-value]

    # ------------------------------------------------------------ what they share

    def at_base(self) -> dict[int, Tensor]:
        """B = 0: no change."""
        return {id(self.B): torch.zeros_like(self.B[:1])}

    def start(
        self, particle: int, init: str, gain: float, b_std: float, generator: torch.Generator
    ) -> None:
        """Draw one particle's A, and its B unless ``b_std`` is 0; see `bella.low_rank`."""
        start_(self.A.data[particle], init, gain, generator)
        if b_std:
            B = self.B.data[particle]
            B.copy_(b_std * torch.randn(B.shape, generator=generator))

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype the change is computed in."""
        return compute_dtype(x)

    @property
    def fused(self) -> bool:
        """Whether the base's own product may be fused with the change: nothing of it trains, and
        no transform of torch.func runs."""
        if transformed():
            return False
        own = self.base._parameters.values()
        return self.plain and not any(p.requires_grad for p in own if p is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Run the particles that the axis chose; open the axis if it is not open yet."""
        A, B = self.axis.select(self.A), self.axis.select(self.B)
        dtype = self.product_dtype(x)
        A, B = A.to(dtype), B.to(dtype)
        if self.axis.carries_particles(x):
            y = self.run(x, A, B)
        else:
            y = self.run_shared(x, A, B)
            self.axis.is_open = True
        if self.listener is not None and y.requires_grad and not transformed():
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
        """The base with one particle's (or the mean) change added to its weight; a plain layer of
        torch where the base holds no weight of its own that could be changed."""
        plain = copy.deepcopy(self.base) if self.plain else self.effective()
        weight: Tensor = plain.weight  # type: ignore[assignment]
        change = self.change_to_weight(self.change(particle))
        merged = (weight.detach().to(change.dtype) + change).to(weight.dtype)
        plain.weight = nn.Parameter(merged, requires_grad=False)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        n, rank, _ = self.A.shape
        return f"particles={n}, rank={rank}, scale={self.scale:g}"


def factor_dtype(like: Tensor) -> torch.dtype:
    """Factors are kept in float32 or better: bfloat16 loses the small steps of an optimiser."""
    return like.dtype if like.dtype == torch.float64 else torch.float32


def start_(A: Tensor, init: str, gain: float, generator: torch.Generator) -> None:
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


class LowRankLinear(LowRankLayer):
    """Linear layers, Hugging Face's Conv1D (a Linear that stores its weight transposed) too."""

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, rank: int, scale: float):
        self.transposed = family(base) == "Conv1D"
        super().__init__(name, axis, base, rank, scale)

    def look_at_base(self, rank: int) -> str | None:
        """Conv1D is known by what it answers; of other forwards it is asked whether they are
        affine."""
        inputs, outputs = self.matrix_shape()
        if not self.transposed:
            self.plain = is_plain(self.base, nn.Linear)
        elif self.plain:
            self.plain = multiplies_transposed(self.base)
        return None if self.plain else why_not_affine(self.base, inputs, outputs)

    def matrix_shape(self) -> tuple[int, int]:
        """(in, out)."""
        if not (self.plain or self.transposed):  # codes may be packed
            return self.base.in_features, self.base.out_features  # type: ignore[return-value]
        first, second = self.weight_shape
        return (first, second) if self.transposed else (second, first)

    def change_to_weight(self, change: Tensor) -> Tensor:
        """Transposed for Conv1D."""
        return change.mT if self.transposed and self.plain else change

    def effective(self) -> nn.Linear:
        """W and b from the base's answers."""
        weight, bias = dense_of(self.base, self.A.shape[-1])
        outputs, inputs = weight.shape
        made = nn.Linear(inputs, outputs, bias is not None, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias, requires_grad=False)
        return made

    def run(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """All particles at once."""
        if not self.fused:
            return super().run(x, A, B)
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        weight = weight.mT if self.transposed else weight
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


def multiplies_transposed(base: nn.Module) -> bool:
    """Whether a Conv1D answers x W + b, with its weight (in, out)."""
    weight: Tensor = base.weight  # type: ignore[assignment]
    bias: Tensor = base.bias  # type: ignore[assignment]
    if weight.is_meta:
        return True
    x = wave(4, len(weight), like=weight)
    with undisturbed(base):
        return near(base(x), x @ weight + bias, tolerance_of(base))
