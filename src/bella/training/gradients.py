"""The gradients of one batch, in as many passes as the particles need, and their clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bella import memory
from bella.likelihood import nll
from bella.posterior import Posterior
from bella.training.settings import Settings
from bella.transport.base import Transport

if TYPE_CHECKING:
    from accelerate import Accelerator


class Gradients:
    """Adds the gradients of batches to the particles' ``.grad``.

    Args:
        posterior: whose particles train.
        accelerator: scales the loss where the precision asks for it.
        move: told what it listens to in a pass.
        settings: of the run.

    Attributes:
        at_once: particles a pass; ``None`` until the first batch shows how many fit. It is part of
            a checkpoint, because free memory differs between runs.
    """

    def __init__(
        self, posterior: Posterior, accelerator: Accelerator, move: Transport, settings: Settings
    ):
        self.posterior = posterior
        self.accelerator = accelerator
        self.move = move
        self.settings = settings
        wanted = settings.particles_per_pass or posterior.particles
        self.at_once: int | None = None if wanted == "auto" else wanted

    def add(self, args: tuple, kwargs: dict[str, Any], labels: Tensor, parts: int) -> Tensor:
        """Of one of ``parts`` batches of a step. Returns its share of the loss."""
        posterior = self.posterior
        scaler = self.accelerator.scaler
        self.move.loss_scale = float(scaler.get_scale()) if scaler is not None else 1.0
        self.move.accumulate = parts
        if self.at_once is None:
            self.at_once = self.choose_at_once(args, kwargs, labels)
        chunks = memory.parts(range(posterior.particles), self.at_once)
        total = torch.zeros((), device=self.accelerator.device)
        if len(chunks) > 1:
            with self.accelerator.autocast():
                if self.settings.minibatches == "shared" and not posterior.trains_base:
                    args, kwargs = posterior.begun(*args, **kwargs)
                self.move.prepare(*args, **kwargs)
        for chunk in chunks:
            loss = self.loss(chunk, args, kwargs, labels)
            self.accelerator.backward(loss / parts)
            total += loss.detach() / parts
        return total

    def loss(self, chunk: list[int], args: tuple, kwargs: dict[str, Any], labels: Tensor) -> Tensor:
        """The loss of some particles on a batch."""
        posterior = self.posterior
        with self.accelerator.autocast(), posterior.subset(chunk):
            if self.settings.minibatches == "shared":
                return nll(posterior(*args, **kwargs), labels)
            own = [x[chunk] for x in args]
            named = {key: value[chunk] for key, value in kwargs.items()}
            with posterior.own_inputs():
                return nll(posterior(*own, **named), labels[chunk])

    def choose_at_once(self, args: tuple, kwargs: dict[str, Any], labels: Tensor) -> int:
        """How many particles fit into the budget with this batch."""
        posterior = self.posterior
        if self.settings.minibatches == "shared":
            with memory.undisturbed(posterior), self.accelerator.autocast():
                posterior.prove(*args, **kwargs)

        def loss() -> Tensor:
            return self.loss(list(posterior.axis.chosen), args, kwargs, labels)

        step = memory.training_step(posterior, loss)
        return memory.at_once(posterior, step, self.settings.memory_budget)


@torch.no_grad()
def clip_particles(posterior: Posterior, parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Clip each particle's gradient norm by itself.

    One common norm would couple the particles: n of them would not train as n single ones do.
    Parameters that all particles share are clipped together.
    """
    stacked = {id(p) for site in posterior.sites() for p in site.parameters}
    own = [p.grad for p in parameters if p.grad is not None and id(p) in stacked]
    rest = [p for p in parameters if p.grad is not None and id(p) not in stacked]
    if own:
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in own]).norm(dim=0)
        factors = (limit / (norms + 1e-6)).clamp_max(1)
        for grad in own:
            grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)).to(grad.dtype))
    if rest:
        nn.utils.clip_grad_norm_(rest, limit)
