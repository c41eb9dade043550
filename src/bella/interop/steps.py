"""What all of other people's loops have in common: a step over their optimiser, clip and scaler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bella.errors import BellaError
from bella.precision import Precision
from bella.training.gradients import Gradients
from bella.training.step import Step
from bella.transport.base import Mover, Transport


def step_of(
    move: Transport,
    optimizer: torch.optim.Optimizer,
    *,
    movers: Sequence[Mover] = (),
    clip: float | None = None,
    likelihood: str = "auto",
    kl_weight: float | Callable[[int], float] = 1.0,
    scaler: torch.amp.GradScaler | None = None,
) -> Step:
    """The step of a loop that goes backward and steps its optimiser by itself.

    Args:
        move: the transport, which knows its posterior.
        optimizer: the loop's.
        movers: see `Step`.
        clip: see `Step`.
        likelihood: see `Gradients`.
        kl_weight: see `Step`.
        scaler: the loop's gradient scaler, if it has one.

    Raises:
        BellaError: the optimiser holds none of the particles.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in move.posterior.stacked_parameters().values()):
        raise BellaError(
            "The optimiser holds none of the posterior's particles: make it from "
            "posterior.parameter_groups(weight_decay), on the posterior that the transport moves."
        )
    gradients = Gradients(
        move.posterior, move, likelihood=likelihood, precision=Precision(scaler=scaler)
    )
    return Step(
        move.posterior,
        optimizer,
        move,
        movers=movers,
        clip=clip,
        kl_weight=kl_weight,
        gradients=gradients,
    )


def check_alone(processes: int, loop: str) -> None:
    """Refuse a loop that runs in several processes.

    Raises:
        BellaError: it does.
    """
    if processes > 1:
        raise BellaError(
            f"{loop} runs in {processes} processes, and what its particles do there has not been "
            "proven to be what they do in one: start it in one, or train with bella.fit under "
            "torchrun."
        )
