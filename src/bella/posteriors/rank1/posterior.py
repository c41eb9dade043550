"""Rank-1 Bayesian networks: K components that scale the inputs and outputs of shared weights.

At a converted layer component k computes (Dusenberry et al. 2020, Eq. 2 and 3)

    y_k = [((x_k ∘ r_k) W)] ∘ s_k + b_k

which is the layer with weights diag(s_k) W diag(r_k). W is shared and trains as usual; r_k (an
element for each input or channel) and s_k (one for each output) are random and drawn anew for each
example, in training and in evaluation. With r and s fixed it is BatchEnsemble (Wen et al. 2020).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bella.errors import BellaError, nearest
from bella.particles import architectures, surgery, targets
from bella.particles.axis import ParticleAxis
from bella.particles.copies import copies_of
from bella.particles.layer import ParticleLayer
from bella.particles.planner import BatchAxes, Folding
from bella.particles.prefix import check_prefix
from bella.posterior import Posterior
from bella.posteriors.rank1.layers import Rank1Layer, layer_kind, refusal
from bella.posteriors.rank1.vectors import CauchyVector, GaussianVector, PointVector, Start

RANDOM: dict[str, type[GaussianVector] | type[CauchyVector]] = {
    "gaussian": GaussianVector,
    "cauchy": CauchyVector,
}
"""Distributions of r and s; ``deterministic`` has none."""


class Rank1Posterior(Posterior):
    """K components of one network with shared weights, all of which train. Made by `rank1`.

    Args:
        network: with its rank-1 layers in place.
        axis: the axis of the components.
        settings: what rebuilds it.
        **options: of `bella.Posterior`.
    """

    kind = "rank1"
    trains_base = True

    def __init__(
        self,
        network: nn.Module,
        axis: ParticleAxis,
        settings: dict[str, Any],
        **options: Any,
    ):
        super().__init__(network, axis, settings, **options)
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
    folding: Folding = "auto",
    batch_axes: BatchAxes | None = None,
    seed: int = 0,
) -> Rank1Posterior:
    """Turn a network, trained or not, into K rank-1 Bayesian components that share its weights.

    The network is adapted in place. Its own weights and batch norms train as well, unless they are
    frozen already. The objective of the paper is ``bella.nll(posterior(x), y) / components +
    kl_weight * posterior.kl() / data_size``, with `bella.training.annealing.kl_weight`, and
    `Rank1Posterior.parameter_groups` for weight decay; `bella.fit` descends ``components`` times
    that. In a loop of your own keep that division, or multiply the divergence by ``components``.

    Args:
        network: any ``nn.Module`` whose inputs have the batch as first axis.
        components: number K of components; each sees the whole minibatch.
        posterior: distribution of r and s; ``deterministic`` is BatchEnsemble.
        target_modules: layers to convert: names, suffixes or regular expressions; ``"auto"`` as
            in `bella.low_rank`; ``None`` for every Linear, Conv1D and Conv2d that can be (not those
            inside ``nn.MultiheadAttention``, with tied weights, or with standardised weights).
        random_sign_init: from 0 to 1, means of r and s start at +1 with this probability and at -1
            otherwise; negative, they start as N(1, |random_sign_init|), which keeps a pre-trained
            network near what it was.
        dropout_rate: p of the starting scale √(p / (1 - p)) of r and s. Of Cauchy ones keep it as
            small as it is: their tails make .001 as noisy as .3 is of Gaussian ones.
        prior_mean: ``one``, or the ``sign`` of the starting mean: an element that starts at -1
            costs 200 nats under the prior N(1, 0.1²).
        prior_std: standard deviation of a Gaussian prior, scale of a Cauchy one.
        kl_reduction: of the divergence over components: ``sum``, the original's, bounds the
            evidence of a mixture of all of them; ``mean`` is the mean of each one's own bound
            (docs/methods/rank1.md).
        batch_norm: ``shared`` normalises over all components together (the original does);
            ``component`` gives each its own.
        shared_prefix: as in `bella.low_rank`, for a ``target_modules`` that begins late; with
            ``False`` the axis opens at the inputs.
        folding: whether particles run in one pass: ``auto`` where that is proven to be right,
            ``never``, or ``always``; see `bella.Posterior`.
        batch_axes: which arguments carry the batch, for a caller who knows; see `bella.Posterior`.
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
    surgery.check(network)
    target_modules = architectures.resolved(network, target_modules)
    why = partial(refusal, network, surgery.bypassed(network))
    if target_modules is None:
        names = [name for name, _ in network.named_modules() if why(name) is None]
    else:
        names = surgery.choose(network, target_modules, why)
    if "" in names:
        raise BellaError("The network is a single layer: wrap it in nn.Sequential.")
    if not names:
        raise BellaError(
            f"Nothing to convert: {type(network).__name__} has no Linear, Conv1D or Conv2d layer "
            "that rank-1 factors can stand on."
        )
    check_prefix(network, shared_prefix)

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
    surgery.install(network, layers, freeze=False)
    settings = {
        "components": components,
        "posterior": posterior,
        "target_modules": targets.as_list(target_modules),
        "random_sign_init": random_sign_init,
        "dropout_rate": dropout_rate,
        "prior_mean": prior_mean,
        "prior_std": prior_std,
        "kl_reduction": kl_reduction,
        "batch_norm": batch_norm,
        "seed": seed,
    }
    return Rank1Posterior(
        network, axis, settings, shared_prefix=shared_prefix, folding=folding, batch_axes=batch_axes
    )


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BellaError(f"{what}={value!r} is unknown: choose {nearest(value, known)}.")
