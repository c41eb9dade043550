"""The methods that `bella reference` compares, each on the posterior that is sampled.

Prior, likelihood and data are the target's and the temperature is 1; gradients are of all data, so
that nothing but the method is between it and the target. To add one, write a function from a
`Problem` and a `Budget` to an `Answer` and put it in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

import bella
from bella import transport
from bella.errors import BellaError, nearest
from bella.evaluation.reference import Answer
from bella.experiments.reference.problems import Problem
from bella.likelihood import Gaussian, Likelihood, by_name
from bella.models.opened import seeded
from bella.posterior import Posterior
from bella.posteriors.laplace.posterior import LaplacePosterior
from bella.posteriors.rank1.layers import Rank1Layer
from bella.posteriors.rank1.posterior import Rank1Posterior
from bella.posteriors.rank1.vectors import RandomVector
from bella.posteriors.sparse.active import scatter
from bella.posteriors.sparse.posterior import SparsePosterior
from bella.posteriors.sparse.topology import Topology
from bella.prediction.said import Said
from bella.transport.base import Transport


class DoesNotApplyError(BellaError):
    """A method is not defined for a problem; the message says why."""


@dataclass(frozen=True)
class Budget:
    """What methods may spend.

    Attributes:
        particles: of those that have several.
        steps: of Adam; Langevin dynamics take `LANGEVIN` times as many.
        draws: of posteriors that draw.
        seed: decides every start and draw.
        told: called as often as ``steps`` for each training.
    """

    particles: int = 20
    steps: int = 1000
    draws: int = 500
    seed: int = 0
    told: Callable[[], None] = lambda: None


LANGEVIN = 6
"""Steps of Langevin dynamics for each of Adam's: noise takes longer to arrive than a descent."""

LEARNING_RATE = 0.02
"""Adam's, at its peak; it falls to 0 as a cosine."""

STABLE = 0.3
"""Langevin's step over the longest that is stable along the steepest direction, half of 2 / λ."""


# ------------------------------------------------------------ points and particles


def particles(problem: Problem, budget: Budget, name: str, count: int | None = None) -> Answer:
    """Low-rank particles and heads by a transport, from starts of their own."""
    posterior = made(problem, budget, count or budget.particles)
    descend(posterior, mover(problem, posterior, name), problem, budget)
    return said_by(posterior, problem, budget)


def noisy(problem: Problem, budget: Budget, name: str) -> Answer:
    """The same by Langevin dynamics: the transport's drift, and noise that belongs to it."""
    posterior = made(problem, budget, budget.particles)
    move = mover(problem, posterior, name, langevin=True)
    rate = STABLE / steepest(problem, budget)
    langevin(posterior, move, problem, budget, rate)
    return said_by(posterior, problem, budget)


def made(problem: Problem, budget: Budget, count: int) -> Posterior:
    """Particles that start apart: A by its own start, heads anew."""
    return bella.low_rank(
        problem.network(budget.seed),
        count,
        rank=max(problem.target.rank, 1),
        target_modules=("layer",) if problem.low_rank else (),
        modules_to_save=("head",),
        head_init="reset",
        seed=budget.seed,
    )


def mover(problem: Problem, posterior: Posterior, name: str, **options: Any) -> Transport:
    """A transport at temperature 1 with the target's prior.

    `svgd` moves weights, so its prior is one on Δ: at this deviation of the same variance.
    """
    likelihood = likelihood_of(problem)
    prior: Literal["delta", "factors"] = "delta" if name == "svgd" else "factors"
    move = transport.by_name(
        name,
        posterior,
        data_size=len(problem.target.y),
        temperature=1.0,
        prior=prior,
        prior_std=problem.target.prior_std,
        **options,
    )
    move.check_likelihood(likelihood)
    return move


def likelihood_of(problem: Problem) -> Likelihood:
    """The target's."""
    variance = problem.target.variance
    return by_name("classes") if variance is None else Gaussian(variance)


def loss_of(posterior: Posterior, problem: Problem) -> Tensor:
    """Mean over the data, summed over particles."""
    target = problem.target
    return bella.nll(posterior(target.x), target.y, likelihood=likelihood_of(problem))


def descend(
    posterior: Posterior,
    move: Transport | None,
    problem: Problem,
    budget: Budget,
    more: Callable[[], Tensor] | None = None,
    topology: Topology | None = None,
    scale: float = 1.0,
) -> None:
    """Adam on loss · scale + more, with what a transport adds."""
    optimizer = torch.optim.Adam(
        [p for p in posterior.parameters() if p.requires_grad], lr=LEARNING_RATE
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.steps)
    if topology is not None:
        topology.follow(optimizer)
    posterior.train()
    with seeded(budget.seed):
        for _ in range(budget.steps):
            optimizer.zero_grad()
            loss = loss_of(posterior, problem) * scale
            (loss if more is None else loss + more()).backward()
            if move is not None:
                move.step()
            if topology is None or not topology.step():
                optimizer.step()
            schedule.step()
            budget.told()
    posterior.eval()


def langevin(
    posterior: Posterior, move: Transport, problem: Problem, budget: Budget, rate: float
) -> None:
    """Plain gradient steps of one length: only those are Langevin dynamics."""
    optimizer = torch.optim.SGD([p for p in posterior.parameters() if p.requires_grad], lr=rate)
    posterior.train()
    with seeded(budget.seed):
        for step in range(LANGEVIN * budget.steps):
            optimizer.zero_grad()
            loss_of(posterior, problem).backward()
            move.step(learning_rate=rate)
            optimizer.step()
            if step % LANGEVIN == 0:
                budget.told()
    posterior.eval()


def steepest(problem: Problem, budget: Budget, rounds: int = 50) -> float:
    """The largest curvature of the mean loss and its prior over N at a mode, by power iteration."""
    quiet = replace(budget, told=lambda: None)
    posterior = made(problem, quiet, 1)
    descend(posterior, mover(problem, posterior, "ensemble"), problem, quiet)
    posterior.mover.detach()
    parameters = [p for p in posterior.parameters() if p.requires_grad]
    weight = 1 / (problem.target.prior_std**2 * len(problem.target.y))
    loss = loss_of(posterior, problem) + weight / 2 * sum(p.square().sum() for p in parameters)
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)]
    )
    generator = torch.Generator().manual_seed(budget.seed)
    direction = torch.randn(len(gradient), generator=generator, dtype=gradient.dtype)
    size = 0.0
    for _ in range(rounds):
        direction = direction / direction.norm()
        along = torch.autograd.grad(gradient @ direction, parameters, retain_graph=True)
        direction = torch.cat([g.flatten() for g in along])
        size = float(direction.norm())
    return size


# ------------------------------------------------------------ Gaussians


def laplace(problem: Problem, budget: Budget, count: int) -> Answer:
    """Linearised Laplace approximations around so many modes, pooled; the target's prior."""
    target = problem.target
    answers = []
    for number in range(count):
        own = replace(budget, draws=budget.draws // count, seed=budget.seed + number)
        around = made(problem, own, 1)
        descend(around, mover(problem, around, "ensemble"), problem, own)
        posterior = bella.laplace(
            around,
            [(target.x, target.y)],
            prior_precision=1 / target.prior_std**2,
            likelihood=likelihood_of(problem).name,
            variance=target.variance,
        )
        answers.append(said_by(posterior, problem, own))
    said = answers[0].said
    pooled = type(said)(torch.cat([answer.said.logits for answer in answers]))
    names = answers[0].weights
    return Answer(pooled, {name: torch.cat([a.weights[name] for a in answers]) for name in names})


def sparse(problem: Problem, budget: Budget, density: float, kl_weight: float = 1.0) -> Answer:
    """Mean-field variational inference on an active set; at density 1 on all weights."""
    if problem.low_rank:
        raise DoesNotApplyError("it has weights and no low-rank factors, so no prior on them")
    target = problem.target
    posterior = bella.sparse_subspace(
        problem.network(budget.seed), density, prior_std=target.prior_std, seed=budget.seed
    )
    topology = Topology(posterior, budget.steps, interval=max(1, budget.steps // 20))
    size = len(target.y)
    descend(
        posterior,
        None,
        problem,
        budget,
        more=lambda: kl_weight * posterior.kl() / size,
        topology=topology,
    )
    return said_by(posterior, problem, budget)


def rank1(problem: Problem, budget: Budget, components: int = 4) -> Answer:
    """Rank-1 components as `bella.recipes` starts them from scratch; W has the target's prior and
    trains as a point, r and s have their own: N(1, 0.7²)."""
    target = problem.target
    network = problem.network(budget.seed)
    if problem.low_rank:
        network.get_submodule("layer").requires_grad_(False)
    posterior = bella.rank1(network, components, dropout_rate=0.3, prior_std=0.7, seed=budget.seed)
    shared = [
        weight
        for layer in posterior.layers().values()
        for weight in layer.base.parameters()  # type: ignore[union-attr]
        if weight.requires_grad
    ]
    size = len(target.y)
    weight = 1 / (2 * target.prior_std**2 * size)

    def more() -> Tensor:
        decay = torch.stack([value.square().sum() for value in shared]).sum()
        return posterior.kl() / size + weight * decay

    descend(posterior, None, problem, budget, more=more, scale=1 / components)
    return said_by(posterior, problem, budget)


# ------------------------------------------------------------ what they say


def said_by(posterior: Posterior, problem: Problem, budget: Budget) -> Answer:
    """Predictions of the test, and draws of head and Δ."""
    target = problem.target
    with seeded(budget.seed):
        said = bella.predict(
            posterior,
            target.test_x,
            draws=max(1, budget.draws // posterior.particles),
            likelihood=likelihood_of(problem),
        )
        weights = weights_of(posterior, problem, budget)
    assert isinstance(said, Said)
    return Answer(said, weights)


@torch.no_grad()
def weights_of(posterior: Posterior, problem: Problem, budget: Budget) -> dict[str, Tensor]:
    """Draws (n, ...) of what `Target.weights_of` names; particles are their own draws."""
    if isinstance(posterior, SparsePosterior):
        (layer,) = posterior.sparse_layers.values()
        noise = torch.randn(budget.draws, layer.mean.shape[1], dtype=layer.mean.dtype)
        drawn = layer.mean + layer.std * noise
        return {"head": torch.stack([scatter(v, layer.index, layer.shape) for v in drawn])}
    if isinstance(posterior, Rank1Posterior):
        drawn_by = {
            name: drawn_weights(layer, budget.draws)
            for name, layer in posterior.layers().items()
            if isinstance(layer, Rank1Layer)
        }
        base = problem.target.base
        more = {} if base is None else {"delta": drawn_by["layer"] - base}
        return {"head": drawn_by["head"], **more}
    if isinstance(posterior, LaplacePosterior):
        draws = [posterior.drawn() for _ in range(budget.draws)]
        stacked = {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}
        named = {name.removeprefix("network."): value for name, value in stacked.items()}
    else:
        named = {name: value.detach() for name, value in posterior.stacked_parameters().items()}
    theta = {"head": named["head.values.weight"]}
    if problem.low_rank:
        theta |= {"A": named["layer.A"], "B": named["layer.B"]}
    return problem.target.weights_of(theta)


def drawn_weights(layer: Rank1Layer, draws: int) -> Tensor:
    """diag(s) W diag(r), (draws * components, out, in), for draws of every component's r and s."""
    r, s = (
        (v.mean + v.scale * v.noise(v.mean.expand(draws, -1, -1))).flatten(0, 1)
        for v in (layer.r, layer.s)
        if isinstance(v, RandomVector)
    )
    weight = layer.base.weight
    assert isinstance(weight, Tensor)
    return s.unsqueeze(2) * weight * r.unsqueeze(1)


# ------------------------------------------------------------ the table


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        title: for tables.
        answer: what it says of a problem within a budget.
        trainings: how many times `Budget.steps` it tells of.
    """

    title: str
    answer: Callable[[Problem, Budget], Answer]
    trainings: int = 1


METHODS: dict[str, Method] = {
    "single": Method("single (MAP)", partial(particles, name="ensemble", count=1)),
    "ensemble": Method("ensemble", partial(particles, name="ensemble")),
    "repulsive": Method("repulsive", partial(particles, name="repulsive")),
    "svgd": Method("SVGD", partial(particles, name="svgd")),
    "function": Method("function", partial(particles, name="function")),
    "ensemble+noise": Method("ensemble + noise (Langevin)", partial(noisy, name="ensemble")),
    "repulsive+noise": Method("repulsive + noise", partial(noisy, name="repulsive")),
    "svgd+noise": Method("SVGD + noise", partial(noisy, name="svgd")),
    "laplace": Method("Laplace", partial(laplace, count=1)),
    "mola": Method("mixture of 5 Laplace", partial(laplace, count=5), trainings=5),
    "vi": Method("mean-field VI (SSVI at density 1)", partial(sparse, density=1.0)),
    "ssvi": Method("SSVI (density 0.5)", partial(sparse, density=0.5)),
    "ssvi-cold": Method(
        "SSVI (density 0.5), KL weight 0.01", partial(sparse, density=0.5, kl_weight=0.01)
    ),
    "rank1": Method("rank-1 (K = 4)", rank1),
}


def methods_named(names: Sequence[str]) -> dict[str, Method]:
    """Some of `METHODS`, in the order in which they are named.

    Raises:
        BellaError: one is not there.
    """
    for name in names:
        if name not in METHODS:
            raise BellaError(f"Method {name!r} is unknown: choose {nearest(name, METHODS)}.")
    return {name: METHODS[name] for name in names}
