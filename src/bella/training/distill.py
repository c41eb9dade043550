"""`bella.distill`: several particles' predictive and their disagreement, learnt by one particle.

On each batch the teacher says its mean distribution p̄ and its mutual information I; the student,
one low-rank particle that begins as one of the teacher's, minimises

    mean over the batch of  -Σ_c p̄_c log p̂_c + w (log(I + ε) - log(Î + ε))²

with p̂ and Î of the Dirichlet that its logits stand for (`bella.prediction.distilled`). The first
term is indifferent to the size of the logits, which the second one sets. Labels are not used, so
that data without any, and data of other kinds, may be given too.

Source:
    Malinin, Mlodozeniec and Gales 2020, Ensemble distribution distillation; its likelihood of the
    members' probabilities under the Dirichlet grows without bound where they agree, so the two
    figures that are wanted are matched instead.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bella.console import progress_bar
from bella.data.loaders import opened
from bella.errors import BellaError
from bella.inputs import split, to
from bella.kernels import fast_float32
from bella.likelihood.outputs import logits_of
from bella.parallel.division import Division
from bella.parallel.ranks import ALONE
from bella.posteriors.low_rank.posterior import LowRankPosterior
from bella.prediction.distilled import DirichletPredictive, Distilled
from bella.prediction.mixture import check_pooled
from bella.prediction.predict import Combined, particles_of, predict
from bella.prediction.predictive import Predictive
from bella.training.batches import epoch_seed
from bella.training.randomness import own_randomness, seed_all
from bella.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    from bella.posterior import Posterior

FLOOR = 1e-4
"""ε, in nats: mutual information below it counts as none."""


def distill(
    posterior: Posterior | Combined,
    data: Any,
    *,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight: float = 0.1,
    collate_fn: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> Distilled:
    """One particle that predicts in one pass what several say, and how much they disagree.

    Args:
        posterior: the teacher: low-rank particles, or a mixture of such; left as it is.
        data: inputs to ask it on, as `bella.fit` takes them; labels are not used. Training data
            alone teach little of disagreement: give unlike ones too, if there are any.
        epochs: passes over the data.
        batch_size: examples a step, of data without a loader.
        learning_rate: at its peak, of AdamW; it rises and falls as that of `bella.fit`.
        weight: w, of the disagreement beside the mean.
        collate_fn: puts examples into a batch, where no loader was given.
        seed: decides the order of the data, and dropout.
        progress: show a bar.

    Returns:
        What `bella.predict` and `bella.evaluate` take. Its ``figures`` hold the two losses of the
        last epoch. The student shares the teacher's frozen base.

    Raises:
        BellaError: particles of another kind, a network without one class an example, a setting
            out of range, or no data.
    """
    for name, value in {"epochs": epochs, "learning_rate": learning_rate}.items():
        if not value > 0:
            raise BellaError(f"{name}={value}: give a number above 0.")
    if not weight >= 0:
        raise BellaError(f"weight={weight}: give a number of at least 0.")
    particles = particles_of(posterior)
    if not isinstance(particles, LowRankPosterior):
        raise BellaError(
            f"Particles of kind {particles.kind!r} cannot be distilled: the student is a low-rank "
            "particle, so its teacher has to be made of such (bella.low_rank)."
        )
    loader = opened(data, batch_size, shuffle=True, collate_fn=collate_fn)
    steps = epochs * len(loader)
    student = alone(particles)
    device = next(student.parameters()).device
    optimizer = torch.optim.AdamW(student.parameter_groups(0.0), lr=learning_rate)
    number = 0
    with progress_bar(progress) as bar, own_randomness(), fast_float32(student):
        task = bar.add_task("distilling", total=steps)
        student.train()
        for epoch in range(epochs):
            seed_all(epoch_seed(seed, epoch))
            sums = torch.zeros(2)
            for batch in loader:
                args, kwargs, _ = split(batch, student.network)
                args, kwargs = to(args, device), to(kwargs, device)
                said = predict(posterior, kwargs or args)
                check_pooled(said)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * learning_rate_factor(number, steps, 0.1)
                losses = torch.stack(losses_of(student, args, kwargs, said))
                optimizer.zero_grad()
                (losses[0] + weight * losses[1]).backward()
                optimizer.step()
                sums += losses.detach().cpu()
                number += 1
                bar.advance(task)
    mean, disagreement = (sums / len(loader)).tolist()
    return Distilled(student.eval(), {"cross_entropy": mean, "log_disagreement": disagreement})


def losses_of(
    student: Posterior, args: tuple, kwargs: dict[str, Any], said: Predictive
) -> tuple[Tensor, Tensor]:
    """How far the student is from what the teacher said of a batch: -Σ p̄ log p̂ and
    (log(I + ε) - log(Î + ε))², each a mean over the batch."""
    own = DirichletPredictive(logits_of(student(*args, **kwargs)))
    cross_entropy = -(said.probs * own.log_probs).sum(-1).mean()
    theirs, mine = said.mutual_information + FLOOR, own.mutual_information + FLOOR
    return cross_entropy, (theirs.log() - mine.log()).square().mean()


def alone(posterior: LowRankPosterior) -> LowRankPosterior:
    """The first particle as a posterior of its own, on the same frozen base."""
    own = {id(x) for x in Division(posterior).stacked().values()}
    everything = (*posterior.network.parameters(), *posterior.network.buffers())
    shared = {id(x): x for x in everything if not x.requires_grad and id(x) not in own}
    one = copy.deepcopy(posterior, shared)
    with torch.no_grad():
        for value in Division(one).stacked().values():
            value.data = value.data[:1].clone()
    one.hold(ALONE, 1)
    one.settings = {**one.settings, "particles": 1}
    return one
