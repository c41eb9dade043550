"""The linear probe: logistic regression on a frozen network's features.

It is a row of every table, because whatever trains more has to beat it, and it is where the heads
of all other rows start (Kumar et al. 2022: probe first, then fine-tune). Several particles start
from probes on resamples of the data; those probes alone are the cheapest ensemble there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bella.errors import BellaError, require
from bella.inputs import split, to
from bella.kernels import fast_float32
from bella.particles.layer import Dense
from bella.posterior import Posterior
from bella.prediction.predictive import Predictive

STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Inverse strengths of the L2 penalty to choose from, on validation."""

Features = tuple[Tensor, Tensor]
"""Features (count, size) and labels (count,)."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features: logits = weight x + bias.

    Attributes:
        weight: (classes, size).
        bias: (classes,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(1, count, classes): one particle's logits."""
        return (features @ self.weight.mT + self.bias).unsqueeze(0)


def fit_probe(train: Features, strength: float, weights: Tensor | None = None) -> Probe:
    """Logistic regression with an L2 penalty.

    All features are divided by one scale, the root of their mean variance. Each by its own would
    make as much of those that are nearly silent in the training data, and on other data those are
    the first to speak up. Their mean is taken away first: what is not penalised, the bias, takes it
    back, so the classifier is the same, and the solver is not led along one long direction.

    Args:
        train: features and labels.
        strength: inverse of the L2 penalty's.
        weights: how often each example counts; once by default.
    """
    linear = require("sklearn.linear_model", "fit")
    x, y = train
    # In float32 the solver stops where rounding lets it: features that differed by 6e-6 gave biases
    # of 1.44 and .006, and .001 of validation NLL.
    x = x.double()
    scale, mean = x.var(0).mean().sqrt().clamp_min(1e-6), x.mean(0)
    model = linear.LogisticRegression(C=strength, max_iter=10_000, tol=1e-6)
    counts = None if weights is None else weights.numpy()
    model.fit(((x - mean) / scale).numpy(), y.numpy(), sample_weight=counts)
    weight = torch.from_numpy(model.coef_) / scale
    bias = (torch.from_numpy(model.intercept_) - weight @ mean).float()
    weight = weight.float()
    if len(weight) == 1:  # of two classes scikit-learn gives the difference of their logits
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return Probe(weight, bias)


def choose_strength(train: Features, validation: Features) -> float:
    """The strength with the lowest NLL on validation data."""

    def loss(strength: float) -> float:
        logits = fit_probe(train, strength).logits(validation[0])
        return float(Predictive(logits).nll(validation[1]))

    return min(STRENGTHS, key=loss)


def bootstrap(train: Features, strength: float, count: int, seed: int) -> list[Probe]:
    """Probes on ``count`` resamples of the training data: they differ where the data leave it
    open, and so start the heads of several particles apart (Efron 1979; Breiman 1996).

    A resample that has lost a class, as those of a few examples do, is drawn again.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = train[1]
    size, classes = len(labels), len(labels.unique())
    probes: list[Probe] = []
    while len(probes) < count:
        drawn = torch.randint(size, (size,), generator=generator)
        if len(labels[drawn].unique()) == classes:
            probes.append(fit_probe(train, strength, torch.bincount(drawn, minlength=size)))
    return probes


def probes_for(train: Features, validation: Features, count: int, seed: int) -> list[Probe]:
    """One probe of the training data, or several on resamples of them, of the strength that suits
    the validation data."""
    strength = choose_strength(train, validation)
    if count == 1:
        return [fit_probe(train, strength)]
    return bootstrap(train, strength, count, seed)


def stacked(posterior: Posterior) -> dict[str, Tensor]:
    """Parameters of which every particle has a whole copy, (particles, ...), by their names."""
    return {site.name: site.value for site in posterior.sites() if isinstance(site, Dense)}


@torch.no_grad()
def start_heads(parameters: Mapping[str, Tensor], head: str, probes: Sequence[Probe]) -> None:
    """Give each particle's copy of a linear head one probe's weights.

    Args:
        parameters: stacked parameters (particles, ...) by name.
        head: name of the Linear.
        probes: one for each particle.

    Raises:
        BellaError: the head is no copy of a Linear that reads the probed features.
    """
    weight, bias = parameters.get(f"{head}.weight"), parameters.get(f"{head}.bias")
    if weight is None or bias is None or weight.shape != (len(probes), *probes[0].weight.shape):
        raise BellaError("Probes can start only a linear head that reads the probed features.")
    weight.copy_(torch.stack([probe.weight for probe in probes]))
    bias.copy_(torch.stack([probe.bias for probe in probes]))


@torch.no_grad()
def features_of(
    network: nn.Module, head: str, loader: DataLoader, progress: Progress | None = None
) -> Features:
    """What arrives at the head of a plain network, with the labels, on the CPU.

    Args:
        network: in the mode that it is to be read in.
        head: name of the module whose input is wanted; one pass calls it once.
        loader: of (inputs, labels).
        progress: a display to show a bar in.
    """
    device = next(network.parameters()).device
    arrived: list[Tensor] = []
    handle = network.get_submodule(head).register_forward_pre_hook(
        lambda module, args: arrived.append(args[0].flatten(1).cpu())
    )
    labels = []
    task = progress.add_task("features for the heads", total=len(loader)) if progress else None
    try:
        for batch in loader:
            args, kwargs, y = split(batch)
            with fast_float32(network):
                network(*to(args, device), **to(kwargs, device))
            labels.append(y.cpu())
            if progress and task is not None:
                progress.advance(task)
    finally:
        handle.remove()
        if progress and task is not None:
            progress.remove_task(task)
    return torch.cat(arrived), torch.cat(labels)


@torch.no_grad()
def head_inputs(posterior: Posterior, loader: DataLoader) -> Features:
    """What arrives at the head of a network whose changes are still zero: its frozen features, on
    the CPU."""
    head = list(posterior.layers().values())[-1]
    device = next(posterior.parameters()).device
    arrived: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: arrived.append(args[0].flatten(1)))
    features, labels = [], []
    posterior.eval()
    try:
        for batch in loader:
            args, kwargs, y = split(batch)
            with fast_float32(posterior):
                posterior(*to(args, device), **to(kwargs, device))
            features.append(arrived[-1].cpu())  # the first pass may run the head twice
            labels.append(y.cpu())
    finally:
        handle.remove()
    return torch.cat(features), torch.cat(labels)
