"""From settings to the step that a run repeats: transport, gradients and optimiser put together."""

from __future__ import annotations

from collections.abc import Sequence

from bella import transport
from bella.parallel.mesh import Mesh
from bella.posterior import Posterior
from bella.precision import Precision
from bella.training.annealing import kl_weight
from bella.training.feed import Feed
from bella.training.gradients import Gradients
from bella.training.optimizer import MakeOptimizer, make_optimizer
from bella.training.samplers import examples
from bella.training.settings import Settings
from bella.training.step import Step
from bella.transport.base import Mover


def make_step(
    posterior: Posterior,
    settings: Settings,
    feed: Feed,
    *,
    optimizer: MakeOptimizer | None,
    movers: Sequence[Mover],
    precision: Precision,
    mesh: Mesh,
) -> Step:
    """The step of a run.

    Args:
        posterior: that trains.
        settings: of the run.
        feed: its data, by which it is known how long it is.
        optimizer: see `bella.fit`.
        movers: the same.
        precision: of the passes.
        mesh: of several processes.

    Raises:
        BellaError: an unknown transport, likelihood or option of theirs, or data of no known size.
    """
    steps = feed.steps_per_epoch * settings.epochs

    def divergence(step: int) -> float:
        """The factor on the divergence, phased in."""
        return settings.kl_weight * kl_weight(
            step, steps_per_epoch=feed.steps_per_epoch, epochs=settings.kl_warmup
        )

    made = make_optimizer(posterior, settings, optimizer)
    options = {"warmup": round(settings.coupling_warmup * steps)} | settings.transport_options
    data_size = examples(feed.train, options.pop("data_size", None))
    move = transport.by_name(settings.transport, posterior, data_size=data_size, **options)
    gradients = Gradients(
        posterior,
        move,
        likelihood=settings.likelihood,
        mean_over=settings.mean_over,
        class_weights=settings.class_weights,
        minibatches=settings.minibatches,
        particles_per_pass=settings.particles_per_pass,
        memory_budget=settings.memory_budget,
        precision=precision,
        mesh=mesh,
    )
    return Step(
        posterior,
        made,
        move,
        movers=movers,
        clip=settings.clip,
        kl_weight=divergence,
        gradients=gradients,
        on_nonfinite=settings.on_nonfinite,
    )
