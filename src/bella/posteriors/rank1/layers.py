"""Layers that scale the inputs and outputs of a shared weight by random rank-1 factors.

    y_k = [((x_k ∘ r_k) W)] ∘ s_k + b_k

r_k has an element for each input or channel, s_k one for each output (Dusenberry et al. 2020, Eq. 2
and 3); both are drawn anew for each example.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis
from bella.particles.layer import Dense, ParticleLayer, Site
from bella.particles.prefix import placeholder
from bella.posteriors.low_rank.layers import is_linear_in_weight
from bella.posteriors.low_rank.posterior import refuse_bypassed
from bella.posteriors.rank1.vectors import PointVector

Maker = Callable[[int, Tensor], PointVector]
"""Makes a factor from its size and a tensor of the wanted dtype and device."""


class Rank1Layer(ParticleLayer):
    """A shared layer between two factors; subclasses say where its kind has channels.

    Args:
        name: the layer's name in the network.
        axis: the posterior's particle axis.
        base: the shared layer; its bias becomes every component's start.
        maker: makes r and s.
    """

    channel_axis: int  # of inputs and outputs, counted from the end
    needs_examples = True

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, maker: Maker):
        super().__init__(name, axis)
        self.base = base
        inputs, outputs = self.sizes()
        weight: Tensor = base.weight  # type: ignore[assignment]
        self.r = maker(inputs, weight)
        self.s = maker(outputs, weight)
        bias = base.bias
        self.bias = None
        if isinstance(bias, Tensor):
            self.bias = nn.Parameter(bias.detach().expand(axis.particles, -1).clone())
        base.register_parameter("bias", None)

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Number of inputs (or their channels) and outputs."""

    @abstractmethod
    def outer(self, r: Tensor, s: Tensor) -> Tensor:
        """The factor s_o r_i on every element of the weight, in the weight's layout."""

    @property
    def weight(self) -> Tensor:
        """A placeholder for networks that ask their layers' dtype or device.

        It is NaN, so that a network that multiplies by it itself, past r and s, shows it.
        """
        shared: Tensor = self.base.weight  # type: ignore[assignment]
        return placeholder(shared.detach(), 0, 1)

    def product(self, x: Tensor) -> Tensor:
        """The shared layer without its bias."""
        return self.base(x)

    def forward(self, x: Tensor) -> Tensor:
        """Run the components that the axis chose; open the axis if it is not open yet."""
        axis = self.axis
        met = axis.layer(self.name)
        if met is not None and not met.by_example:
            raise BellaError(
                f"Rank-1 factors are drawn for each example, and {met.why_not}: leave "
                f"{self.name!r} out of target_modules."
            )
        if not axis.carries_particles(x):
            x = axis.repeat(x)
            axis.is_open = True
        y = self.spread(self.product(self.scaled(x, self.r())))
        y = y * self.along(self.s(), y)
        if self.bias is not None:
            y = y + self.along(axis.select(self.bias).unsqueeze(1), y)
        return y.flatten(0, 2)

    def scaled(self, x: Tensor, v: Tensor) -> Tensor:
        """The rows of x times their component's and example's v."""
        x = self.spread(x)
        return (x * self.along(v, x)).flatten(0, 2)

    def spread(self, x: Tensor) -> Tensor:
        """(rows, ...) as (width, batch, rows of an example, ...)."""
        return x.unflatten(0, (self.axis.width, self.axis.batch, -1))

    def along(self, v: Float[Tensor, "width batch size"], spread: Tensor) -> Tensor:
        """V on the channels of a `spread` tensor, in its dtype."""
        shape = [1] * (spread.dim() - 2)
        shape[self.channel_axis] = v.shape[-1]
        return v.reshape(*v.shape[:2], *shape).to(spread.dtype)

    def kl(self) -> Float[Tensor, " components"]:
        """Divergence of r and s from their priors, in nats."""
        return self.r.kl() + self.s.kl()

    def sites(self) -> list[Site]:
        """Means and biases."""
        own = {"r.mean": self.r.mean, "s.mean": self.s.mean}
        if self.bias is not None:
            own["bias"] = self.bias
        return [Dense(f"{self.name}.{key}", value) for key, value in own.items()]

    def merged(self, particle: int | None) -> nn.Module:
        """A plain layer of mean factors, or of the components' averaged weights."""
        some = slice(None) if particle is None else slice(particle, particle + 1)
        r, s = self.r.mean.detach()[some], self.s.mean.detach()[some]
        factor = torch.stack([self.outer(a, b) for a, b in zip(r, s, strict=True)]).mean(0)
        plain = copy.deepcopy(self.base)
        plain.weight = nn.Parameter(plain.weight.detach() * factor)  # type: ignore[operator]
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach()[some].mean(0))
        return plain.train(self.training)


class Rank1Linear(Rank1Layer):
    """Linear, and Hugging Face's Conv1D, which stores its weight as (in, out)."""

    channel_axis = -1

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, maker: Maker):
        self.transposed = not isinstance(base, nn.Linear)
        super().__init__(name, axis, base, maker)

    def sizes(self) -> tuple[int, int]:
        """(in, out)."""
        first, second = self.base.weight.shape  # type: ignore[misc]
        return (first, second) if self.transposed else (second, first)

    def product(self, x: Tensor) -> Tensor:
        """X W; Conv1D cannot run without a bias."""
        return x @ self.base.weight if self.transposed else self.base(x)  # type: ignore[operator]

    def outer(self, r: Tensor, s: Tensor) -> Tensor:
        """Transposed for Conv1D."""
        return torch.outer(r, s) if self.transposed else torch.outer(s, r)


class Rank1Conv2d(Rank1Layer):
    """Convolutions, in groups as well: r stands on input channels, s on output channels."""

    channel_axis = -3

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Conv2d, maker: Maker):
        self.groups = base.groups
        super().__init__(name, axis, base, maker)

    def sizes(self) -> tuple[int, int]:
        """(channels in, channels out)."""
        outputs, inputs, *_ = self.base.weight.shape  # type: ignore[misc]
        return inputs * self.groups, outputs

    def outer(self, r: Tensor, s: Tensor) -> Tensor:
        """(out, in / groups, 1, 1)."""
        inputs = r.view(self.groups, 1, -1).expand(-1, len(s) // self.groups, -1).flatten(0, 1)
        return (s.unsqueeze(1) * inputs)[:, :, None, None]


KINDS: dict[str, type[Rank1Layer]] = {
    "Linear": Rank1Linear,
    "Conv1D": Rank1Linear,
    "Conv2d": Rank1Conv2d,
}
"""Which layer carries rank-1 factors for which class of base (itself or an ancestor)."""


def layer_kind(module: nn.Module) -> type[Rank1Layer] | None:
    """The rank-1 layer for a base module, or ``None`` where there is none."""
    names = (ancestor.__name__ for ancestor in type(module).__mro__)
    return next((KINDS[name] for name in names if name in KINDS), None)


def refuse(network: nn.Module, name: str) -> None:
    """Refuse layers that rank-1 factors cannot stand on.

    Raises:
        BellaError: no Linear, Conv1D or Conv2d, one that is never called, or one that transforms
            its weight.
    """
    module = network.get_submodule(name)
    if layer_kind(module) is None:
        raise BellaError(
            f"target_modules names {name!r}, a {type(module).__name__}: rank-1 factors exist for "
            "Linear, Conv1D and Conv2d layers, so name those inside it."
        )
    refuse_bypassed(network, name)
    if isinstance(module, nn.Conv2d) and not is_linear_in_weight(module):
        raise BellaError(
            f"Layer {name!r} ({type(module).__name__}) transforms its weight before it convolves, "
            "so its factors could not be merged into the weight: leave it out of target_modules."
        )


def convertible(network: nn.Module) -> list[str]:
    """Every layer that `refuse` does not refuse."""
    names = []
    for name, _ in network.named_modules():
        try:
            refuse(network, name)
        except BellaError:
            continue
        names.append(name)
    return names
