"""From a network and settings to a posterior: the one way for `bella fit` and the comparison.

A `Recipe` says how one kind of posterior is made of a network, how its heads start, how it is
trained where nobody says otherwise, and how it predicts. To add a kind, write a function from a
network and a `Plan` to a posterior, and put its recipe in `KINDS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import bella
from bella.errors import BellaError, nearest
from bella.particles import targets
from bella.posterior import Posterior
from bella.posteriors.laplace.maps import maps_of
from bella.posteriors.sparse.posterior import SparsePosterior
from bella.posteriors.sparse.topology import Topology
from bella.training.probe import Probe, stacked, start_heads

CHANGES = 20
"""How often the active set of an SSVI posterior moves in a training."""

BELLA: Mapping[str, Any] = {
    "transport": "repulsive",
    # The strongest repulsion that costs no validation NLL (docs/results.md).
    "transport_options": {"temperature": 1000.0},
}
"""How low-rank particles move where nobody says otherwise."""

START: Mapping[str, Any] = {"gain": 10.0}
"""How their factors start: A wide (chosen on validation, docs/results.md), so that particles differ
from the first step on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a posterior is made with.

    Attributes:
        particles: how many.
        target_modules: layers that change; a posterior over the network's own weights takes these
            and the head of a pre-trained network, and everything of one that starts anew.
        heads: modules of which every particle has its own.
        head: name of the one head that probes can start, if it is one Linear (see `linear_head`).
        probes: what that head starts from, see `Recipe.probes`; none leave it as it is.
        frozen_heads: whether heads stay the probes that they start as: each has seen a resample of
            its own, and training on the same data brings them together.
        pretrained: whether the network is; otherwise all of it trains.
        adapters: folders of PEFT adapters that low-rank particles start as, one each.
        shared_prefix: where the particle axis opens, see `bella.low_rank`.
        options: further arguments of the constructor.
        seed: decides every start.
    """

    particles: int
    target_modules: Sequence[str] = ()
    heads: Sequence[str] = ()
    head: str | None = None
    probes: Sequence[Probe] = ()
    frozen_heads: bool = False
    pretrained: bool = True
    adapters: Sequence[str] = ()
    shared_prefix: bool | str = True
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One kind of posterior.

    Attributes:
        make: the posterior, from a fresh network and a plan.
        constructor: the public function behind it, whose arguments `Plan.options` may name.
        particles: how many where nobody says.
        settings: of `bella.fit` on a pre-trained network, where nobody says otherwise.
        build: of the constructor, where nobody says otherwise.
        mixes: whether its particles are pooled with readouts of the frozen network that they began
            as, see `bella.mixture`.
        draws: of a stochastic posterior, for each prediction.
        alone: whether there can only be one particle.
        one_probe: whether all particles start from one probe, and not each from its own.
        training: further arguments of `bella.fit`, for a posterior, the number of its optimiser's
            steps and all settings.
        finish: the posterior that predicts, from the trained one and loaders of its training and
            validation data.
    """

    make: Callable[[nn.Module, Plan], Posterior]
    constructor: str
    particles: int = 5
    settings: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    mixes: bool = False
    draws: int = 1
    alone: bool = False
    one_probe: bool = False
    training: Callable[[Posterior, int, Mapping[str, Any]], dict[str, Any]] = lambda *_: {}
    finish: Callable[[Posterior, Any, Any], Posterior] = lambda posterior, *_: posterior

    def probes(self, particles: int) -> int:
        """How many probes so many particles start from."""
        return 1 if self.one_probe else particles

    def refuse_unknown(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the constructor does not have.

        Raises:
            BellaError: it has no such argument; the message lists near ones.
        """
        known = set(inspect.signature(getattr(bella, self.constructor)).parameters) - GIVEN
        for name in options:
            if name not in known:
                raise BellaError(
                    f"bella.{self.constructor} has no option {name!r}: near names are "
                    f"{nearest(name, known)}."
                )


GIVEN = {
    *("network", "particles", "components", "loader", "validation"),
    *("target_modules", "modules_to_save", "shared_prefix", "seed", "reset"),
}
"""Arguments of constructors that a plan gives by other names, or a recipe by itself."""


def recipe_named(kind: str) -> Recipe:
    """One of `KINDS`.

    Raises:
        BellaError: there is none of that name.
    """
    if kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise BellaError(f"method {kind!r} is unknown: choose {known}.")
    return KINDS[kind]


def make(kind: str, network: nn.Module, plan: Plan) -> Posterior:
    """A posterior of one of `KINDS`; the network is adapted in place.

    Raises:
        BellaError: an unknown kind, options that it does not have or several particles where there
            can be one; or see its constructor.
    """
    recipe = recipe_named(kind)
    recipe.refuse_unknown(plan.options)
    if recipe.alone and plan.particles != 1:
        raise BellaError(
            f"method {kind!r} has one particle, and particles={plan.particles}: leave it out."
        )
    return recipe.make(network, plan)


def linear_head(network: nn.Module, heads: Sequence[str]) -> str | None:
    """Name of a network's one head, where it is a Linear with a bias: probes can start it.

    Raises:
        BellaError: a head is not there.
    """
    names = targets.find(network, heads, what="modules_to_save")
    modules = [network.get_submodule(name) for name in names]
    single = len(modules) == 1 and type(modules[0]) is nn.Linear and modules[0].bias is not None
    return names[0] if single else None


# ---------------------------------------------------------------- kinds


def make_low_rank(network: nn.Module, plan: Plan) -> Posterior:
    """Low-rank changes of a frozen network, heads of each particle's own."""
    where: dict[str, Any] = {
        "modules_to_save": plan.heads,
        "shared_prefix": plan.shared_prefix,
        "seed": plan.seed,
        **plan.options,
    }
    if plan.adapters:
        return bella.from_peft(network, plan.adapters, **where)
    posterior = bella.low_rank(network, plan.particles, target_modules=plan.target_modules, **where)
    heads = stacked(posterior)
    if plan.head is not None and plan.probes:
        start_heads(heads, plan.head, plan.probes)
    if plan.frozen_heads:
        for head in heads.values():
            head.requires_grad_(False)
    return posterior


def make_around(network: nn.Module, plan: Plan) -> Posterior:
    """One low-rank particle that a Gaussian will lie around: what that does not cover is refused
    before it is trained."""
    posterior = make_low_rank(network, plan)
    maps_of(posterior)
    return posterior


def make_full(network: nn.Module, plan: Plan) -> Posterior:
    """Whole copies that differ in their heads at first, or, from scratch, in everything."""
    anew = () if plan.pretrained else (".*",)
    posterior = bella.full(network, plan.particles, reset=anew, seed=plan.seed, **plan.options)
    if plan.head is not None and plan.probes:
        start_heads(stacked(posterior), plan.head, plan.probes)
    return posterior


def make_rank1(network: nn.Module, plan: Plan) -> Posterior:
    """Components around a pre-trained network's weights; wide ones from scratch.

    Cauchy vectors stay where the paper starts them: clipped to ±10 a scale of .03 varies as much as
    a Gaussian one of .65, and ten times that drowns the inputs (docs/methods/rank1.md).
    """
    options = dict(plan.options)
    if not plan.pretrained and options.get("posterior") != "cauchy":
        # Chosen on validation, see docs/results.md.
        options = {"dropout_rate": 0.3, "prior_std": 0.7} | options
    return _converted(
        network, plan, lambda **where: bella.rank1(network, plan.particles, **where, **options)
    )


def make_ssvi(network: nn.Module, plan: Plan) -> Posterior:
    """A Gaussian on the largest of a pre-trained network's weights, and on all of its head, which
    is small; or, from scratch, where the constructor puts it."""
    options = {"prior_std": 0.1} | dict(plan.options)
    if plan.pretrained:
        options = {"start": "network", "dense_modules": tuple(plan.heads)} | options
    return _converted(
        network, plan, lambda **where: bella.sparse_subspace(network, **where, **options)
    )


def _converted(network: nn.Module, plan: Plan, convert: Callable[..., Posterior]) -> Posterior:
    """A posterior over the layers' own weights.

    Of a pre-trained network those layers that low-rank particles adapt, and the head; what comes
    before is frozen and shared. A network that is trained from scratch is converted as a whole.
    """
    if not plan.pretrained:
        return convert(seed=plan.seed)
    network.requires_grad_(False)
    if plan.head is not None and plan.probes:
        own = {name: p.unsqueeze(0) for name, p in network.named_parameters()}
        start_heads(own, plan.head, plan.probes)
    posterior = convert(
        target_modules=(*plan.target_modules, *plan.heads),
        shared_prefix=plan.shared_prefix,
        seed=plan.seed,
    )
    for layer in posterior.layers().values():
        layer.requires_grad_(True)
    return posterior


def train_ssvi(posterior: Posterior, steps: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What moves its active set."""
    assert isinstance(posterior, SparsePosterior)
    return {"movers": [Topology(posterior, steps, interval=max(1, steps // CHANGES))]}


def finish_laplace(posterior: Posterior, train: Any, validation: Any) -> Posterior:
    """A Gaussian around the trained particle, as wide as validation data like it best.

    The marginal likelihood takes the factors for draws of the prior, and A, which starts wide, asks
    for one so wide that nothing is certain.
    """
    return bella.laplace(posterior, train, prior_precision="validation", validation=validation)


ALONE = {"transport": "ensemble", "transport_options": {}}

KINDS: dict[str, Recipe] = {
    "low-rank": Recipe(
        make=make_low_rank, constructor="low_rank", settings=BELLA, build=START, mixes=True
    ),
    "rank1": Recipe(
        make=make_rank1,
        constructor="rank1",
        particles=4,
        draws=4,
        settings=ALONE | {"learning_rate": 1e-4},  # on validation, among 1e-4, 3e-4 and 1e-3
        one_probe=True,
    ),
    "ssvi": Recipe(
        make=make_ssvi,
        constructor="sparse_subspace",
        particles=1,
        draws=5,
        # The paper's weight on the divergence; the rate on validation, among 3e-4, 1e-3 and 3e-3.
        settings=ALONE | {"kl_weight": 0.01, "learning_rate": 3e-3},
        alone=True,
        one_probe=True,
        training=train_ssvi,
    ),
    "full": Recipe(
        make=make_full,
        constructor="full",
        # On validation, among 3e-5 and 1e-4: all weights move. One copy at a time: n whole
        # networks' activations need not stand side by side.
        settings=ALONE | {"learning_rate": 3e-5, "particles_per_pass": 1},
    ),
    "laplace": Recipe(
        make=make_around,
        constructor="low_rank",
        build=START,
        particles=1,
        draws=20,
        settings=ALONE,
        alone=True,
        finish=finish_laplace,
    ),
}
"""Kinds of posteriors by the name that a user types as ``--method``."""
