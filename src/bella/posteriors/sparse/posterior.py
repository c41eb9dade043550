"""Sparse subspace variational inference (SSVI, Li et al. 2024): a whole network, sparse throughout.

A weight is N(μ, σ²) on an active set of fixed size and exactly 0 elsewhere. Values, gradients and
optimiser state exist for the active set alone, in training as in use. How the set moves is the
business of `bella.posteriors.sparse.topology`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError, nearest
from bella.particles import architectures, surgery, targets
from bella.particles.axis import ParticleAxis
from bella.particles.linearity import described, family
from bella.particles.planner import BatchAxes, Folding
from bella.particles.prefix import check_prefix
from bella.posterior import Posterior
from bella.posteriors.sparse.active import decode, encode
from bella.posteriors.sparse.criteria import CRITERIA
from bella.posteriors.sparse.layers import SparseLayer, Start, layer_kind


class SparsePosterior(Posterior):
    """One network with a sparse Gaussian weight. Made by `sparse_subspace`.

    Every call draws anew, (1, batch, ...); see `at_mean` for the network of the mean weights, which
    `soup` and `particle` return as a plain network. All other parameters train as well.
    """

    kind = "sparse_subspace"
    trains_base = True
    stochastic = True

    @property
    def sparse_layers(self) -> dict[str, SparseLayer]:
        """The layers with a sparse Gaussian weight, by name."""
        return {k: layer for k, layer in self.layers().items() if isinstance(layer, SparseLayer)}

    @property
    def active(self) -> int:
        """Number of active weights; it never changes."""
        return sum(layer.mean.numel() for layer in self.sparse_layers.values())

    @property
    def density(self) -> float:
        """Fraction of the weights that is active, over all layers."""
        return self.active / sum(layer.shape.numel() for layer in self.sparse_layers.values())

    def kl(self) -> Tensor:
        """Divergence of the active weights from their prior, in nats."""
        return torch.stack([layer.kl() for layer in self.sparse_layers.values()]).sum()

    @contextmanager
    def at_mean(self) -> Iterator[None]:
        """Inside the block, and outside of training, calls use the mean weights and draw nothing:
        half the products."""
        before = self.stochastic
        self._set_drawing(False)
        try:
            yield
        finally:
            self._set_drawing(before)

    def _set_drawing(self, drawing: bool) -> None:
        self.stochastic = drawing
        for layer in self.sparse_layers.values():
            layer.drawing = drawing

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """All that trains, in two groups: weight decay on all but ρ."""
        rhos = {layer.rho: None for layer in self.sparse_layers.values()}
        (group,) = super().parameter_groups(weight_decay)
        group["params"] = [p for p in group["params"] if p not in rhos]
        return [group, {"params": list(rhos), "weight_decay": 0.0}]

    # ------------------------------------------------------------ files

    def packed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Positions as bytes: about one for an active weight instead of four."""
        return tensors | {
            key: encode(tensors[key], layer.shape.numel()) for key, layer in self._indices().items()
        }

    def unpacked(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `packed` was given."""
        return tensors | {
            key: decode(tensors[key], layer.shape.numel())
            for key, layer in self._indices().items()
            if key in tensors
        }

    def _indices(self) -> dict[str, SparseLayer]:
        return {
            f"{name}.index": layer
            for name, layer in self.sparse_layers.items()
            if layer.index is not None
        }


def sparse_subspace(
    network: nn.Module,
    density: float = 0.1,
    criterion: str = "snr_abs",
    target_modules: targets.Targets | None = None,
    *,
    exponent: float = 1.0,
    dense_modules: targets.Targets | None = None,
    start: Start = "random",
    mean_std: float = 0.01,
    scale: tuple[float, float] = (6e-4, 5e-4),
    prior_std: float = 0.005,
    shared_prefix: bool | str = False,
    folding: Folding = "auto",
    batch_axes: BatchAxes | None = None,
    seed: int = 0,
) -> SparsePosterior:
    """Give a network a Gaussian posterior on a small active set of its weights; 0 elsewhere.

    The network is adapted in place. Its other parameters (biases, norms) train as well, unless they
    are frozen already. The objective of the paper is ``bella.nll(posterior(x), y) + weight *
    posterior.kl() / data_size`` where the weight rises to 0.01 over half the epochs
    (`bella.fit`'s ``kl_weight=0.01, kl_warmup=epochs / 2``).
    `bella.posteriors.sparse.topology.Topology` moves the active set; without it the first one
    stays.

    Args:
        network: any ``nn.Module`` whose inputs have the batch as first axis.
        density: fraction of each layer's weights that is active; 1 is dense mean-field VI.
        criterion: what decides which weights leave: a name of
            `bella.posteriors.sparse.criteria.CRITERIA`.
        target_modules: Linear and Conv2d layers to convert: names, suffixes or regular expressions;
            ``None`` for every one that can be (not those inside ``nn.MultiheadAttention``, with
            tied weights, or with a forward of their own).
        exponent: λ of the criteria with e^{λ|θ|}.
        dense_modules: those among them that keep density 1; ``None`` for a convolution that comes
            first, ``()`` for none.
        start: ``random`` positions and N(0, mean_std²) for μ, as in the paper, or from the
            ``network``: its own weights, the largest of each layer.
        mean_std: standard deviation of a random start.
        scale: mean and standard deviation of the normal distribution whose absolute value is σ's
            start.
        prior_std: standard deviation of the prior N(0, prior_std²) of an active weight. The
            paper's is narrow: for weights of a usual size, or few data, take a wider one.
        shared_prefix: as in `bella.low_rank`: where what comes before late ``target_modules`` is
            frozen, its outputs can be kept for a data set, as `bella.fit` does.
        folding: see `bella.Posterior`.
        batch_axes: see `bella.Posterior`.
        seed: decides the start.

    Returns:
        The posterior; call it as the network was called. It has one particle.

    Raises:
        BellaError: nothing to convert, unsuitable targets, or an argument out of range.

    Source:
        Li, Miao, Qiu & Zhang 2024, Training Bayesian Neural Networks with Sparse Subspace
        Variational Inference.
    """
    if not 0 < density <= 1:  # refuses NaN as well
        raise BellaError(f"density={density}: give a fraction above 0 and at most 1.")
    if criterion not in CRITERIA:
        raise BellaError(
            f"criterion={criterion!r} is unknown: choose {nearest(criterion, CRITERIA, count=6)}."
        )
    if start not in ("random", "network"):
        raise BellaError(f"start={start!r} is unknown: choose 'random' or 'network'.")
    positive = {
        "exponent": exponent,
        "mean_std": mean_std,
        "scale": scale[0],
        "prior_std": prior_std,
    }
    for what, value in positive.items():
        if not (value > 0 and math.isfinite(value)):
            raise BellaError(f"{what}={value}: give a positive number.")
    surgery.check(network)
    target_modules = architectures.resolved(network, target_modules)
    names = _chosen(network, target_modules)
    check_prefix(network, shared_prefix)
    if dense_modules is None:
        dense = names[:1] if isinstance(network.get_submodule(names[0]), nn.Conv2d) else []
    else:
        dense = targets.find(network, dense_modules, what="dense_modules")

    axis = ParticleAxis(1)
    layers: dict[str, SparseLayer] = {}
    for number, name in enumerate(names):
        base = network.get_submodule(name)
        kind = layer_kind(base)
        assert kind is not None
        layer = kind(name, axis, base, 1.0 if name in dense else density, prior_std)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        layer.start(base.weight, start, mean_std, scale, generator)  # type: ignore[arg-type]
        layers[name] = layer
    surgery.install(network, layers, freeze=False)
    settings = {
        "density": density,
        "criterion": criterion,
        "exponent": exponent,
        "target_modules": targets.as_list(target_modules),
        "dense_modules": targets.as_list(dense_modules),
        "start": start,
        "mean_std": mean_std,
        "scale": list(scale),
        "prior_std": prior_std,
        "seed": seed,
    }
    return SparsePosterior(
        network, axis, settings, shared_prefix=shared_prefix, folding=folding, batch_axes=batch_axes
    )


def _chosen(network: nn.Module, wanted: targets.Targets | None) -> list[str]:
    """Names of the layers to convert, in the network's order.

    Raises:
        BellaError: there is none, or one cannot be converted.
    """
    why = partial(refusal, network, surgery.bypassed(network))
    if wanted is not None:
        names = surgery.choose(network, wanted, why)
    else:
        names = [name for name, _ in network.named_modules() if why(name) is None]
    if "" in names:
        raise BellaError("The network is a single layer: wrap it in nn.Sequential.")
    if not names:
        raise BellaError(
            f"Nothing to convert: {type(network).__name__} has no Linear or Conv2d layer that a "
            "sparse Gaussian can take the place of."
        )
    return names


def refusal(network: nn.Module, reasons: dict[str, str], name: str) -> str | None:
    """Why a layer gets no sparse Gaussian weight, as a sentence; ``None`` if it can have one.

    Args:
        network: that holds it.
        reasons: `bella.particles.surgery.bypassed` of the network.
        name: the layer's.
    """
    module = network.get_submodule(name)
    if layer_kind(module) is not None:
        return reasons.get(name)
    known = family(module) in ("Linear", "Conv2d")
    more = ", which computes something of its own or holds no ordinary weight" if known else ""
    end = "leave it out" if known else "name those inside it"
    return (
        f"target_modules names {name!r}, a {described(module)}{more}: sparse Gaussian weights "
        f"exist for plain Linear and Conv2d layers, so {end}."
    )
