"""Layers whose weight is Gaussian on a small active set and 0 elsewhere.

They hold ``mean`` and ``rho`` of the active weights and their positions, nothing of the others
(Li et al. 2024). Outputs are drawn by local reparameterisation (Kingma et al. 2015),

    y = μ x + √(σ² x² + 1e-8) ε,  ε ~ N(0, 1) for each output of each example,

with σ = softplus(rho). The bias, if there is one, is an ordinary parameter.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bella.particles.answers import stand_in_for, take_facts
from bella.particles.attended import transformed
from bella.particles.axis import ParticleAxis
from bella.particles.layer import ParticleLayer, Site, compute_dtype
from bella.particles.linearity import is_plain
from bella.posteriors.divergences import kl_gaussian
from bella.posteriors.sparse.active import gather, largest_inactive, rows_of, scatter
from bella.posteriors.sparse.product import ConvMap, GaussianProduct, LinearMap, Map

VARIANCE_FLOOR = 1e-8
COMPRESSED_UP_TO = 0.1
"""Density up to which a Linear layer on the CPU multiplies compressed rows instead of a dense
weight: see benchmarks/sparse_inference.py."""

Start = Literal["random", "network"]


class Found(NamedTuple):
    """Gradients of one backward pass by the dense mean, as far as they are kept."""

    positions: Tensor
    """Of the inactive weights with the largest gradients."""
    gradients: Tensor
    """Theirs."""
    active: Tensor
    """Those of the active weights, (k,)."""


class SparseLayer(ParticleLayer):
    """A layer with a sparse Gaussian weight; subclasses say what it is multiplied with.

    Args:
        name: the layer's name in the network.
        axis: the posterior's particle axis, of one particle.
        base: the layer it takes the place of.
        density: fraction of its weights that is active; at 1 no positions are stored.
        prior_std: standard deviation of the prior N(0, prior_std²).

    Attributes:
        mean: μ of the active weights, (1, k).
        rho: softplus⁻¹(σ) of the active weights, (1, k).
        index: their ascending positions in the flattened weight, (k,) int32, or ``None`` for all.
        drawing: whether outputs are drawn; otherwise they are those of the mean weight.
        scouts: how many inactive weights of the largest gradient the next backward passes note.
        found: what the last backward pass noted.
    """

    def __init__(
        self, name: str, axis: ParticleAxis, base: nn.Module, density: float, prior_std: float
    ):
        super().__init__(name, axis)
        self.prior_std = prior_std
        weight: Tensor = base.weight  # type: ignore[assignment]
        self.shape = weight.shape
        count = max(1, round(density * weight.numel()))
        self.mean = nn.Parameter(weight.new_zeros(1, count))
        self.rho = nn.Parameter(weight.new_zeros(1, count))
        self.index: Tensor | None
        full = count == weight.numel()
        positions = torch.arange(count, dtype=torch.int32, device=weight.device)
        self.register_buffer("index", None if full else positions)
        self.bias: nn.Parameter | None = base.bias  # type: ignore[assignment]
        # In a list, so that the dense weight is no part of the posterior.
        self._like = [_without_weight(base)]
        self.drawing = True
        self.scouts = 0
        self.found: Found | None = None
        take_facts(self, base)

    # ------------------------------------------------------------ the active set

    @property
    def density(self) -> float:
        """Fraction of the weights that is active."""
        return self.mean.numel() / self.shape.numel()

    @property
    def std(self) -> Float[Tensor, "1 k"]:
        """σ of the active weights."""
        return F.softplus(self.rho)

    @property
    def weight(self) -> Tensor:
        """The weight's shape, dtype and device; see `bella.particles.answers`."""
        like = self.mean
        return stand_in_for(self.name, self.shape, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def start(
        self,
        source: Tensor,
        how: Start,
        mean_std: float,
        scale: tuple[float, float],
        generator: torch.Generator,
    ) -> None:
        """Choose the first active set, and its μ and σ; see `bella.sparse_subspace`.

        All is drawn on the CPU, so that one seed gives one start on every device.
        """
        count, size = self.mean.numel(), self.shape.numel()
        flat = source.detach().reshape(-1)
        if self.index is not None:
            order = torch.randperm(size, generator=generator)[:count]
            if how == "network":
                order = flat.abs().topk(count).indices
            self.index.copy_(order.sort().values)
        if how == "network":
            self.mean.copy_(flat if self.index is None else flat[self.index.long()])
        else:
            self.mean.copy_(mean_std * torch.randn(1, count, generator=generator))
        center, spread = scale
        std = (center + spread * torch.randn(1, count, generator=generator)).abs()
        # A σ of 0 has no softplus⁻¹, and its KL diverges.
        self.rho.copy_(std.clamp_min(0.01 * center).expm1().log())

    def scout(self, gradient: Tensor) -> None:
        """Note the inactive weights of the largest gradient; the gradient itself is dropped."""
        assert self.index is not None
        flat = gradient.detach().reshape(-1)
        positions = largest_inactive(flat, self.index, self.scouts)
        self.found = Found(positions, flat[positions], gather(flat, self.index))

    # ------------------------------------------------------------ one pass

    @abstractmethod
    def product(self, dtype: torch.dtype) -> Map:
        """What multiplies the weight, computing in ``dtype``."""

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """The input as `product` takes it."""

    @abstractmethod
    def outputs(self, y: Tensor, x: Tensor) -> Tensor:
        """What `product` made of ``x``, in the plain layer's shape and with the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Draw the outputs, or compute those of the mean weight."""
        dtype = compute_dtype(x)
        # Variances lie below float16's range.
        wide = torch.float32 if dtype == torch.float16 else dtype
        with torch.autocast(x.device.type, enabled=False):
            rows, mean = self.rows(x.to(wide)), self.mean[0].to(wide)
            if self.training or self.drawing:
                y = self._draw(rows, mean)
            else:
                y = self._apply_mean(rows, mean)
            return self.outputs(y, x).to(dtype)

    def _draw(self, rows: Tensor, mean: Tensor) -> Tensor:
        scout = self.scout if self.scouts and self.index is not None else None
        variance = self.std[0].square().to(mean.dtype)
        product = self.product(mean.dtype)
        if transformed():
            center = product.apply(rows, scatter(mean, self.index, self.shape))
            spread = product.apply(rows.square(), scatter(variance, self.index, self.shape))
        else:
            center, spread = GaussianProduct.apply(rows, mean, variance, self.index, product, scout)
        # Not randn_like, whose numbers depend on the strides.
        noise = torch.randn(center.shape, dtype=center.dtype, device=center.device)
        return center + (spread + VARIANCE_FLOOR).sqrt() * noise

    def _apply_mean(self, rows: Tensor, mean: Tensor) -> Tensor:
        product = self.product(mean.dtype)
        if torch.is_grad_enabled():  # compressed rows know no gradient of the input
            return product.apply(rows, scatter(mean, self.index, self.shape))
        return product.apply(rows, product.weight(mean, self.index))

    # ------------------------------------------------------------ the contract

    def kl(self) -> Float[Tensor, ""]:
        """Divergence of the active weights from the prior N(0, prior_std²), in nats."""
        return kl_gaussian(self.mean, self.std, 0.0, self.prior_std).sum()

    def sites(self) -> list[Site]:
        """Nothing: one particle feels no other, and its prior is in the divergence."""
        return []

    def merged(self, particle: int | None) -> nn.Module:
        """The plain layer with the mean weight."""
        plain = copy.deepcopy(self._like[0])
        weight = scatter(self.mean[0].detach(), self.index, self.shape)
        plain.weight = nn.Parameter(weight.clone())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone())
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"shape={tuple(self.shape)}, active={self.mean.numel():,} ({self.density:.1%})"


class SparseLinear(SparseLayer):
    """A sparse Gaussian Linear layer; on the CPU it multiplies compressed rows where that pays."""

    _rows: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None

    def product(self, dtype: torch.dtype) -> LinearMap:
        """Multiply compressed rows, or a dense weight."""
        few = self.index is not None and self.density <= COMPRESSED_UP_TO
        # torch's compressed rows need MKL on the CPU, and a dtype that MKL knows.
        able = self.mean.is_cpu and torch.backends.mkl.is_available()
        if few and able and dtype in (torch.float32, torch.float64):
            return LinearMap(self.shape, self._current_rows())
        return LinearMap(self.shape)

    def _current_rows(self) -> tuple[Tensor, Tensor]:
        """The compressed form of the index, made anew when the active set has changed."""
        index, kept = self.index, self._rows
        assert index is not None
        if kept is None or kept[0] is not index or kept[1] != index._version:
            kept = self._rows = index, index._version, rows_of(index, self.shape)
        return kept[2]

    def rows(self, x: Tensor) -> Tensor:
        """(rows, in)."""
        return x.reshape(-1, self.shape[1])

    def outputs(self, y: Tensor, x: Tensor) -> Tensor:
        """(..., out)."""
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.shape[0])


class SparseConv2d(SparseLayer):
    """A sparse Gaussian convolution. It saves memory and bytes on disk, and no time: its kernel is
    made dense for the pass."""

    def product(self, dtype: torch.dtype) -> ConvMap:
        """Convolve; what torch pads by name or by content is padded before."""
        base = self._like[0]
        padding = (0, 0) if self._pads_before() else tuple(base.padding)  # type: ignore[arg-type]
        return ConvMap(self.shape, base.stride, padding, base.dilation, base.groups)  # type: ignore[arg-type]

    def _pads_before(self) -> bool:
        base = self._like[0]
        return base.padding_mode != "zeros" or isinstance(base.padding, str)

    def rows(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w), padded if the convolution does not."""
        base = self._like[0]
        if not self._pads_before():
            return x
        mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
        return F.pad(x, base._reversed_padding_repeated_twice, mode=mode)  # type: ignore[arg-type]

    def outputs(self, y: Tensor, x: Tensor) -> Tensor:
        """(batch, out, h, w)."""
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


KINDS: dict[type[nn.Module], type[SparseLayer]] = {
    nn.Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
}


def layer_kind(module: nn.Module) -> type[SparseLayer] | None:
    """The sparse layer for a plain one; none if it computes something of its own, or with another
    weight than it holds."""
    return next((kind for known, kind in KINDS.items() if is_plain(module, known)), None)


def _without_weight(base: nn.Module) -> nn.Module:
    # deepcopy takes what `memo` holds for an object instead of copying it.
    return copy.deepcopy(base, {id(base.weight): None, id(base.bias): None})
