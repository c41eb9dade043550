"""What a run changes as it goes, so that a stopped one goes on to the same bits."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from bella.errors import BellaError
from bella.files import shortened
from bella.storage import own_values, put_back
from bella.training.checkpoint import check_alike, check_optimizer, check_own
from bella.training.kept import Kept
from bella.training.position import Position
from bella.training.step import Step


class State:
    """The parts of a run that change: particles, optimiser, schedule, scaler, transport and movers,
    the plans of its passes, where in an epoch it stands, and the particles that are kept.

    Args:
        step: of the run, with its posterior, optimiser, transport and movers.
        schedule: of the learning rate.
        kept: the best particles so far.
        steps_per_epoch: of the run.

    Attributes:
        position: where in an epoch the run stands.
    """

    def __init__(self, step: Step, schedule: LambdaLR, kept: Kept, steps_per_epoch: int):
        self.step = step
        self.schedule = schedule
        self.kept = kept
        self.steps_per_epoch = steps_per_epoch
        self.position = Position()

    def take(self) -> dict[str, Any]:
        """All of it now, as tensors and JSON values: a part of a checkpoint."""
        step, within = self.step, self.position.steps > 0
        scaler = step.gradients.precision.scaler
        return {
            **step.state_dict(),
            "own": own_values(step.posterior),
            "optimizer": step.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "particles_per_pass": step.gradients.at_once,
            "best": self.kept.best,
            "position": self.position.state() if within else None,
            "finite": self.kept.finite if within else None,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any], place: str) -> None:
        """Go on from a checkpoint; refused, it changes no particle.

        Args:
            state: what `take` returned, and the number of epochs that were done, ``epoch``.
            place: of the checkpoint, for the sentence.

        Raises:
            BellaError: it does not fit this posterior, optimiser, transport or way to run.
        """
        try:
            check_own(state["own"], own_values(self.step.posterior))
        except ValueError as error:
            raise BellaError(
                f"{place} holds the run of another posterior ({error}): name another folder."
            ) from None
        try:
            self.position = self._load(state)
        except BellaError:
            self.kept.restore()  # as they were
            raise
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
            OverflowError,
        ) as error:
            self.kept.restore()
            raise BellaError(
                f"The checkpoint in {place} does not fit this optimiser "
                f"({shortened(error)}): name another folder, or begin anew with --fresh "
                "(resume=False)."
            ) from None
        self.kept.load(state["best"], state["epoch"], state.get("finite"))
        self.step.gradients.at_once = state["particles_per_pass"]

    def _load(self, state: dict[str, Any]) -> Position:
        step, schedule = self.step, self.schedule
        found = state.get("position")
        position = Position() if found is None else Position.of(found, self.steps_per_epoch)
        check_optimizer(state["optimizer"], step.optimizer)
        check_alike("schedule", state["schedule"], schedule.state_dict())
        check_alike("move", state["move"], step.move.state_dict())
        put_back(step.posterior, state["own"])
        step.optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        # The schedule of more epochs than were asked for before is elsewhere after as many steps.
        for group, rate, factor in zip(
            step.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = rate * factor(state["step"])
        if step.gradients.precision.scaler is not None:
            step.gradients.precision.scaler.load_state_dict(state["scaler"])
        step.load_state_dict(state)
        return position
