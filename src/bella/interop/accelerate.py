"""Accelerate on a posterior: the loss and the step of an ordinary loop with an Accelerator.

coupling = Coupling(accelerator, move, optimizer, clip=1.0)
for x, y in loader:
    with accelerator.accumulate(posterior):
        accelerator.backward(coupling.loss(posterior(x), y))
        coupling.ready()
        optimizer.step()
        optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bella.errors import require
from bella.interop.steps import check_alone, step_of
from bella.transport.base import Mover, Transport

require("accelerate", "trainer")
from accelerate import Accelerator  # noqa: E402


class Coupling:
    """Couples a posterior's particles between backward and the optimiser.

    ``accelerator.register_for_checkpointing(coupling)`` puts what it needs to go on into the
    accelerator's own checkpoints.

    Args:
        accelerator: the loop's; used as it is.
        move: the transport.
        optimizer: the loop's, prepared or not.
        clip: largest gradient norm of one particle, after coupling; it stands for
            ``accelerator.clip_grad_norm_``, which clips all particles by one common norm.
        movers: what changes the posterior beside the transport, see `bella.fit`.
        likelihood: what the labels are, see `bella.fit`.
        kl_weight: factor on the divergence of stochastic posteriors, see `bella.fit`.

    Raises:
        BellaError: several processes, or an optimiser without the posterior's particles.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        move: Transport,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float | None = None,
        movers: Sequence[Mover] = (),
        likelihood: str = "auto",
        kl_weight: float | Callable[[int], float] = 1.0,
    ):
        check_alone(accelerator.num_processes, "Accelerate")
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.step = step_of(
            move,
            optimizer,
            clip=clip,
            movers=movers,
            likelihood=likelihood,
            kl_weight=kl_weight,
            scaler=accelerator.scaler,
        )

    @property
    def said(self) -> Tensor:
        """Each particle's mean loss on the last batch, (particles,): what a log should show."""
        return self.step.said

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """What ``accelerator.backward`` is given, which divides by the number of accumulated
        batches; see `Step.loss`."""
        return self.step.loss(outputs, labels) * self.accelerator.gradient_accumulation_steps

    def ready(self) -> bool:
        """Couple the particles where a step is complete; call it before the optimiser's step.

        Returns:
            Whether a mover stands for the optimiser's step; see `Step.ready`.
        """
        if not self.accelerator.sync_gradients:
            return False
        self.accelerator.unscale_gradients(self.optimizer)
        return self.step.ready()

    def state_dict(self) -> dict[str, Any]:
        """For ``accelerator.save_state``."""
        return self.step.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For ``accelerator.load_state``."""
        self.step.load_state_dict(state)
