"""What every layer with particles answers, and what a transport may move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis


@dataclass(frozen=True)
class Factors:
    """Particle i's change of one weight matrix is ``scale * B[i] @ A[i]``.

    Attributes:
        name: the layer's name in the network.
        A: (particles, rank, in).
        B: (particles, out, rank).
        scale: alpha / rank, or alpha / sqrt(rank).
        layer: the layer itself; svgd listens to its inputs and output gradients.
    """

    name: str
    A: nn.Parameter
    B: nn.Parameter
    scale: float
    layer: Any

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The stacked parameters of this site."""
        return (self.A, self.B)


@dataclass(frozen=True)
class Dense:
    """A parameter of which every particle owns a whole copy, stacked to (particles, ...).

    Attributes:
        name: the parameter's name in the network.
        value: (particles, ...).
        in_kernel: whether distances between particles count it. A head's copies do not: they move
            with the kernel of the adapted layers.
    """

    name: str
    value: nn.Parameter
    in_kernel: bool = True

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The stacked parameters of this site."""
        return (self.value,)


Site = Factors | Dense

Listener = Callable[[Tensor, Tensor, tuple[int, ...]], None]
"""Called in the backward pass with a layer's input, its output's gradient, and who ran."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a matrix product of ``x`` runs in here, autocast included: it leaves float64 alone.

    Raises:
        BellaError: ``x`` holds no floating numbers; weights would be rounded to integers. Or it is
            one example without an axis for the batch, which a plain Linear takes.
    """
    if not x.is_floating_point():
        raise BellaError(
            f"A layer with particles met inputs of {x.dtype}, with which its weights cannot be "
            "multiplied: convert them first, with x.float() say."
        )
    if x.dim() < 2:
        raise BellaError(
            f"A layer with particles met a tensor of shape {tuple(x.shape)}, which has no axis for "
            "the batch: give inputs whose first axis is the batch, x.unsqueeze(0) of one example."
        )
    kind = x.device.type
    if x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class ParticleLayer(nn.Module, ABC):
    """A layer that looks at which particle a row belongs to.

    Args:
        name: the layer's name in the network.
        axis: the posterior's particle axis.
    """

    def __init__(self, name: str, axis: ParticleAxis):
        super().__init__()
        self.name = name
        self.axis = axis

    needs_examples: ClassVar[bool] = False
    """Whether it must know which rows belong to one example, also where a single particle runs."""

    @abstractmethod
    def sites(self) -> list[Site]:
        """What of this layer a transport may move."""

    def distinct(self, variants: int, generator: torch.Generator) -> dict[int, Tensor]:
        """Other values of this layer's stacked parameters, by their ``id``: what a proof runs with.

        Particles start alike, so their own values could not show whose rows were whose.

        Args:
            variants: how many different ones of each, stacked as particles are.
            generator: of the CPU; draws them.
        """
        return {
            id(p): spread_out(p, variants, generator)
            for site in self.sites()
            for p in site.parameters
        }

    def at_base(self) -> dict[int, Tensor]:
        """Values of stacked parameters with which one particle computes what the frozen base does,
        by their ``id``, each (1, ...); empty where the base plays no part."""
        return {}

    @abstractmethod
    def merged(self, particle: int | None) -> nn.Module:
        """A plain layer: one particle's, or the average of their weights for ``None``."""


HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)
"""Where torch keeps what a caller hung on a module."""


def keep_hooks(module: nn.Module, plain: nn.Module) -> None:
    """Hang on a plain module what a caller hung on the one in whose place it stands, outside of
    what hangs on it already."""
    for name in HOOKS:
        outer, inner = getattr(module, name), getattr(plain, name)
        both = (outer, inner) if name.startswith("_forward_pre") else (inner, outer)
        setattr(plain, name, OrderedDict(item for hooks in both for item in hooks.items()))
    if plain._is_full_backward_hook is None:
        plain._is_full_backward_hook = module._is_full_backward_hook


def spread_out(
    stacked: Tensor, variants: int, generator: torch.Generator, std: float | None = None
) -> Tensor:
    """The first particle's value with noise of its own size, several times (variants, ...)."""
    start = stacked.detach()[:1]
    if std is None:
        std = float(start.float().square().mean().sqrt()) or 0.1
    noise = torch.randn(variants, *start.shape[1:], generator=generator)
    return start + (std * noise).to(start)
