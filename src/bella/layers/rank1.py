"""Rank-1 Bayesian networks: K components that scale the inputs and outputs of shared weights.

At a converted layer component k computes (Dusenberry et al. 2020, Eq. 2 and 3)

    y_k = [((x_k ∘ r_k) W)] ∘ s_k + b_k

which is the layer with weights diag(s_k) W diag(r_k). W is shared and trains as usual; r_k (an
element for each input or channel) and s_k (one for each output) are random and drawn anew for each
example, in training and in evaluation. With r and s fixed it is BatchEnsemble (Wen et al. 2020).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bella.errors import BellaError, nearest
from bella.layers import targets
from bella.layers.axis import ParticleAxis
from bella.layers.base import Dense, ParticleLayer, Site
from bella.layers.copies import copies_of
from bella.layers.low_rank import leave_fused_path, refuse_bypassed
from bella.layers.low_rank_layers import is_linear_in_weight
from bella.layers.prefix import placeholder
from bella.layers.vectors import CauchyVector, GaussianVector, PointVector, Start
from bella.posterior import Posterior

Maker = Callable[[int, Tensor], PointVector]
"""Makes a factor from its size and a tensor of the wanted dtype and device."""

RANDOM: dict[str, type[GaussianVector] | type[CauchyVector]] = {
    "gaussian": GaussianVector,
    "cauchy": CauchyVector,
}
"""Distributions of r and s; ``deterministic`` has none."""


class Rank1Layer(ParticleLayer):
    """A shared layer between two factors; subclasses say where its kind has channels.

    Args:
        name: the layer's name in the network.
        axis: the posterior's particle axis.
        base: the shared layer; its bias becomes every component's start.
        maker: makes r and s.
    """

    channel_axis: int  # of inputs and outputs, counted from the end

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
        return placeholder(shared.detach(), len(shared))

    def product(self, x: Tensor) -> Tensor:
        """The shared layer without its bias."""
        return self.base(x)

    def forward(self, x: Tensor) -> Tensor:
        """Run the components that the axis chose; open the axis if it is not open yet."""
        axis = self.axis
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


class Rank1Posterior(Posterior):
    """K components of one network with shared weights, all of which train. Made by `rank1`.

    Args:
        network: with its rank-1 layers in place.
        axis: the axis of the components.
        settings: what rebuilds it.
        shared_prefix: where the axis opens.
    """

    kind = "rank1"
    trains_base = True

    def __init__(
        self,
        network: nn.Module,
        axis: ParticleAxis,
        settings: dict[str, Any],
        *,
        shared_prefix: bool | str = False,
    ):
        super().__init__(network, axis, settings, shared_prefix=shared_prefix)
        self.stochastic = settings["posterior"] in RANDOM

    def kl(self) -> Tensor:
        """Divergence of all r and s from their priors, in nats, summed or averaged over K."""
        layers = [layer for layer in self.layers().values() if isinstance(layer, Rank1Layer)]
        each = torch.stack([layer.kl() for layer in layers]).sum(0)
        return each.mean() if self.settings["kl_reduction"] == "mean" else each.sum()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """All that trains, in two groups: weight decay on all but r and s."""
        vectors = [m for m in self.network.modules() if isinstance(m, PointVector)]
        factors = {p: None for vector in vectors for p in vector.parameters()}
        (group,) = super().parameter_groups(weight_decay)
        group["params"] = [p for p in group["params"] if p not in factors]
        return [group, {"params": list(factors), "weight_decay": 0.0}]


def rank1(
    network: nn.Module,
    components: int = 4,
    posterior: Literal["gaussian", "cauchy", "deterministic"] = "gaussian",
    target_modules: targets.Targets | None = None,
    *,
    random_sign_init: float = -0.1,
    dropout_rate: float = 1e-3,
    prior_mean: Literal["one", "sign"] = "one",
    prior_std: float = 0.1,
    kl_reduction: Literal["sum", "mean"] = "sum",
    batch_norm: Literal["shared", "component"] = "shared",
    shared_prefix: bool | str = False,
    seed: int = 0,
) -> Rank1Posterior:
    """Turn a network, trained or not, into K rank-1 Bayesian components that share its weights.

    The network is adapted in place. Its own weights and batch norms train as well, unless they are
    frozen already. The objective of the paper is ``bella.nll(posterior(x), y) / components +
    kl_weight * posterior.kl() / data_size``, with `bella.variational.annealing.kl_weight`, and
    `Rank1Posterior.parameter_groups` for weight decay.

    Args:
        network: any ``nn.Module`` whose inputs have the batch as first axis.
        components: number K of components; each sees the whole minibatch.
        posterior: distribution of r and s; ``deterministic`` is BatchEnsemble.
        target_modules: layers to convert: names, suffixes or regular expressions; ``None`` for
            every Linear, Conv1D and Conv2d that can be (not those inside
            ``nn.MultiheadAttention``, with tied weights, or with standardised weights).
        random_sign_init: from 0 to 1, means of r and s start at +1 with this probability and at -1
            otherwise; negative, they start as N(1, |random_sign_init|), which keeps a pre-trained
            network near what it was.
        dropout_rate: p of the starting scale √(p / (1 - p)) of r and s.
        prior_mean: ``one``, or the ``sign`` of the starting mean: an element that starts at -1
            costs 200 nats under the prior N(1, 0.1²).
        prior_std: standard deviation of a Gaussian prior, scale of a Cauchy one.
        kl_reduction: over components, ``sum`` (the original's) or ``mean``.
        batch_norm: ``shared`` normalises over all components together (the original does);
            ``component`` gives each its own.
        shared_prefix: as in `bella.low_rank`, for a ``target_modules`` that begins late; with
            ``False`` the axis opens at the inputs.
        seed: decides every start; component k starts the same whatever K is.

    Returns:
        The posterior; call it as the network was called. Every call draws anew.

    Raises:
        BellaError: nothing to convert, unsuitable targets, or an argument out of range.

    Source:
        Dusenberry et al. 2020, Efficient and Scalable Bayesian Neural Nets with Rank-1 Factors.
    """
    axis = ParticleAxis(components)
    _check("posterior", posterior, ("deterministic", *RANDOM))
    _check("prior_mean", prior_mean, ("one", "sign"))
    _check("kl_reduction", kl_reduction, ("sum", "mean"))
    _check("batch_norm", batch_norm, ("shared", "component"))
    if random_sign_init > 1:
        raise BellaError(f"random_sign_init={random_sign_init}: a probability is at most 1.")
    if not 0 < dropout_rate < 1:
        raise BellaError(f"dropout_rate={dropout_rate}: give a number between 0 and 1.")
    if not prior_std > 0:
        raise BellaError(f"prior_std={prior_std}: give a positive number.")
    if target_modules is None:
        names = convertible(network)
    else:
        names = targets.find(network, target_modules)
        for name in names:
            refuse(network, name)
    if "" in names:
        raise BellaError("The network is a single layer: wrap it in nn.Sequential.")
    if not names:
        raise BellaError(
            f"Nothing to convert: {type(network).__name__} has no Linear, Conv1D or Conv2d layer "
            "that rank-1 factors can stand on."
        )

    start = Start(components, random_sign_init, dropout_rate, seed)

    def make(size: int, like: Tensor) -> PointVector:
        mean = start.mean(size).to(like)
        if posterior not in RANDOM:
            return PointVector(axis, mean)
        center = mean.sign() if prior_mean == "sign" else mean.new_ones(())
        return RANDOM[posterior](axis, mean, start.rhos(size).to(like), center, prior_std)

    layers: dict[str, ParticleLayer] = {}
    for name in names:
        base = network.get_submodule(name)
        kind = layer_kind(base)
        assert kind is not None
        layers[name] = kind(name, axis, base, make)
    if batch_norm == "component":
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                layers[name] = copies_of(name, axis, module, in_kernel=False)
    for name, layer in layers.items():
        targets.replace(network, name, layer)
    leave_fused_path(network)
    settings = {
        "components": components,
        "posterior": posterior,
        "target_modules": targets.as_list(target_modules),
        "prior_mean": prior_mean,
        "prior_std": prior_std,
        "kl_reduction": kl_reduction,
        "batch_norm": batch_norm,
        "shared_prefix": shared_prefix,
    }
    return Rank1Posterior(network, axis, settings, shared_prefix=shared_prefix)


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BellaError(f"{what}={value!r} is unknown: choose {nearest(value, known)}.")
