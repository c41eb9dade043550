"""Lightning on a posterior: a callback that couples the particles before the optimiser steps.

coupling = Coupling(move, clip=1.0)

class Module(lightning.LightningModule):
    def training_step(self, batch, number):
        return coupling.loss(self.posterior(batch["x"]), batch["y"])

lightning.Trainer(callbacks=[coupling], ...).fit(Module(), loader)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bella.errors import BellaError, require
from bella.interop.steps import check_alone, step_of
from bella.training.step import Step
from bella.transport.base import Mover, Transport

require("lightning", "lightning")
import lightning.pytorch as pl  # noqa: E402


class Coupling(pl.Callback):
    """Couples a posterior's particles between backward and the optimiser.

    Lightning divides the loss of accumulated batches by their number and unscales fp16's gradients
    before it asks its callbacks; `loss` undoes the one, and the other is as it should be. What the
    coupling needs to go on is in Lightning's own checkpoints.

    Args:
        move: the transport.
        clip: largest gradient norm of one particle, after coupling; it stands for the Trainer's
            ``gradient_clip_val``, which clips all particles by one common norm.
        movers: what changes the posterior beside the transport, see `bella.fit`.
        likelihood: what the labels are, see `bella.fit`.
        kl_weight: factor on the divergence of stochastic posteriors, see `bella.fit`.
    """

    def __init__(
        self,
        move: Transport,
        *,
        clip: float | None = None,
        movers: Sequence[Mover] = (),
        likelihood: str = "auto",
        kl_weight: float | Callable[[int], float] = 1.0,
    ):
        self.move = move
        self.options: dict[str, Any] = {
            "clip": clip,
            "movers": movers,
            "likelihood": likelihood,
            "kl_weight": kl_weight,
        }
        self.begun: Step | None = None
        self.parts = 1
        self.known: dict[str, Any] | None = None  # of a checkpoint, until there is a step

    @property
    def step(self) -> Step:
        """The step that couples the particles; there is one while Lightning trains."""
        if self.begun is None:
            raise BellaError("Lightning has not begun to train: give this callback to its Trainer.")
        return self.begun

    @property
    def said(self) -> Tensor:
        """Each particle's mean loss on the last batch, (particles,): what a log should show."""
        return self.step.said

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """What ``training_step`` returns, see `Step.loss`."""
        return self.step.loss(outputs, labels) * self.parts

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the step over Lightning's optimiser.

        Raises:
            BellaError: what Lightning would do beside it would undo the coupling.
        """
        check_alone(trainer.world_size, "Lightning")
        if len(trainer.optimizers) != 1:
            raise BellaError(
                f"The particles of one posterior move in one step, and there are "
                f"{len(trainer.optimizers)} optimisers: return one from configure_optimizers."
            )
        if trainer.gradient_clip_val:
            raise BellaError(
                "gradient_clip_val clips all particles by one common norm, after they are coupled: "
                "leave it out and give clip to this callback, which clips each by itself."
            )
        automatic = pl_module.automatic_optimization
        self.parts = trainer.accumulate_grad_batches if automatic else 1
        self.begun = step_of(
            self.move,
            trainer.optimizers[0],
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            **self.options,
        )
        if self.known is not None:
            self.begun.load_state_dict(self.known)
            self.known = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Couple the particles."""
        self.step.ready()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return {} if self.begun is None else self.begun.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint of Lightning's, which restores before there is an optimiser."""
        self.known = dict(state_dict) or None
