"""One step of training: gradients, divergence, movers, clip, checks and the optimiser.

    step = Step(posterior, optimizer, move)
    for x, y in loader:
        loss = step([((x,), {}, y)])

`bella.fit` is a loop over this. A loop that goes backward by itself calls `Step.ready` between
backward and its optimiser, and leaves the rest as it is:

    for x, y in batches:  # as many as make a step
        step.loss(posterior(x), y).backward()
    step.ready()
    optimizer.step(); optimizer.zero_grad()

The optimiser descends n times the mean over particles of ℓ_i + λ KL / N, ℓ_i particle i's mean
negative log-likelihood, so that each particle's gradient is its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from bella import likelihood as likelihoods
from bella.errors import BellaError
from bella.files import shortened
from bella.posterior import Posterior
from bella.training.checks import (
    DivergedError,
    check_everyone,
    particles_named,
    where_not_finite,
)
from bella.training.gradients import Batch, Gradients, Loss
from bella.transport.base import Mover, Transport


class Step:
    """One step at a time.

    Args:
        posterior: whose particles train.
        optimizer: an ordinary one of torch, over `Posterior.parameter_groups` for example.
        move: the transport.
        movers: others, asked before the transport; each is told the optimiser, and the first that
            stands for its step ends the step (see `Mover`).
        clip: largest gradient norm of one particle; ``None`` for no limit.
        kl_weight: λ on the divergence of stochastic posteriors, a number or a function of the
            step's number.
        gradients: how batches become gradients; all particles in one pass by default.
        on_nonfinite: ``stop`` at a loss, gradient or distance that is not finite, or ``skip`` the
            optimiser's step and count it.

    Attributes:
        skipped: how many steps were.
        number: of the next step, counted from 0.
        said: each particle's mean loss on the last batch that `loss` was given, (particles,).
        norms: of the last step's gradients, coupled and not yet clipped, (particles + 1,); the last
            is of what all particles share.
    """

    def __init__(
        self,
        posterior: Posterior,
        optimizer: torch.optim.Optimizer,
        move: Transport,
        *,
        movers: Sequence[Mover] = (),
        clip: float | None = None,
        kl_weight: float | Callable[[int], float] = 1.0,
        gradients: Gradients | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ):
        self.on_nonfinite = on_nonfinite
        self.skipped = 0
        self.posterior = posterior
        self.optimizer = optimizer
        self.move = move
        self.movers: tuple[Mover, ...] = (*movers, move)
        self.clip = clip
        self.kl_weight = kl_weight
        self.gradients = gradients or Gradients(posterior, move)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.number = 0
        self.said = torch.zeros(posterior.particles)
        self.norms = torch.zeros(posterior.particles + 1)
        self._unit: float | None = None  # labels that weigh 1 in what `loss` returns
        self._counted: Tensor | None = None  # labels of the step's batches so far
        for mover in self.movers:
            mover.follow(optimizer)

    def __call__(self, batches: Sequence[Batch]) -> Loss:
        """From the batches of one step to moved particles; the gradients are gone afterwards.

        Raises:
            DivergedError: a loss or a gradient is not finite; the particles are as they were.
            BellaError: labels that do not fit the outputs.
        """
        check_everyone(self.posterior)
        device = next(self.posterior.parameters()).device
        loss = self.gradients.add(batches, device)
        scaler = self.gradients.precision.scaler
        if not self.ready(loss.mean):
            try:
                self.optimizer.step() if scaler is None else scaler.step(self.optimizer)
            except RuntimeError as error:
                if "overflow" not in str(error):
                    raise
                raise DivergedError(f"The optimiser's step {self.number} overflowed") from error
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad()
        return loss

    def loss(self, outputs: Any, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """What a loop that goes backward by itself goes backward from, for one of a step's batches.

        A step may have any number of batches, of any numbers of labels: `ready` divides by the
        labels that count in all of them, so that every label weighs the same. Until then a label
        weighs one over a power of two, which rounds nothing.

        Args:
            outputs: of all particles, in one pass on a batch that they share.
            labels: as the network's own loss takes them.
            weights: of each example, (batch,), if they do not weigh the same.

        Returns:
            A scalar, the sum over particles; `said` is what a log should show.

        Raises:
            BellaError: see `bella.nll`.
        """
        sums, counts = likelihoods.losses(
            outputs,
            labels,
            likelihood=self.gradients.likelihood,
            own=False,
            class_axis=self.gradients.class_axis,
            weights=weights,
            **self.gradients.weighing,
        )
        counted = counts[0]
        if self._unit is None:
            self._unit = 2.0 ** round(math.log2(max(labels.numel(), 1)))
        self._counted = counted if self._counted is None else self._counted + counted
        self.said = sums.detach() / torch.where(counted > 0, counted, 1)
        self.move.accumulate = self._unit / counted
        self.move.loss_scale = self.gradients.precision.scale
        return sums.sum() / self._unit

    @torch.no_grad()
    def _weigh(self) -> None:
        """Make the gradients of what `loss` returned those of the mean over the step's labels."""
        if self._counted is None or self._unit is None:
            return
        factor = self._unit / torch.where(self._counted > 0, self._counted, 1)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad))
        self.move.loss_scale = self.move.loss_scale / factor
        self._counted = None

    def ready(self, losses: Tensor | None = None) -> bool:
        """Make the gradients that backward left ready for the optimiser, and count the step.

        A gradient scaler of the loop's own has unscaled them.

        Args:
            losses: each particle's, (particles,), to name one that is not finite.

        Returns:
            Whether a mover stands for the optimiser's step, or it is skipped. The gradients are
            gone then, so that an optimiser that steps all the same moves nothing by them.

        Raises:
            DivergedError: a loss, a gradient or a distance is not finite; the gradients are gone.
        """
        scaler = self.gradients.precision.scaler
        if scaler is not None and self.gradients.precision.unscales:
            scaler.unscale_(self.optimizer)
        self._weigh()
        if self.posterior.stochastic:
            self.add_divergence()
        rate = self.optimizer.param_groups[0]["lr"]
        replaced = any(mover.step(learning_rate=rate) for mover in self.movers)
        norms = torch.zeros(1) if replaced else self.clipped()
        self.norms = norms
        self.move.loss_scale = self.move.accumulate = 1.0  # the next batches say theirs
        self.number += 1
        # One look at the device. The scaler leaves out steps of infinite gradients by itself.
        seen = torch.zeros_like(norms) if scaler is not None else norms
        if losses is not None:
            seen = torch.cat((seen.to(losses), losses))
        wrong = (~torch.isfinite(seen)).sum()
        self.posterior.ranks.sum([wrong])
        if wrong:
            what = self.what_is_not_finite(losses)
            self.optimizer.zero_grad()
            if self.on_nonfinite == "stop":
                raise DivergedError(what)
            self.skipped += 1
            if self.skipped == 1:
                warnings.warn(
                    f"{what}: this step is skipped, and so will others be that are not finite; the "
                    "record counts them.",
                    stacklevel=3,
                )
            return True
        if replaced:
            self.optimizer.zero_grad()
        return replaced

    def state_dict(self) -> dict[str, Any]:
        """What a resumed loop needs beside the posterior's and the optimiser's tensors."""
        return {
            "step": self.number,
            "move": self.move.state_dict(),
            "movers": [mover.state_dict() for mover in self.movers[:-1]],
            "passes": self.posterior.passes.planner.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the tensors of that moment in place.

        Raises:
            BellaError: it is none, or one of other movers.
        """
        try:
            movers = list(zip(self.movers[:-1], state["movers"], strict=True))
            self.move.load_state_dict(state["move"])
            for mover, known in movers:
                mover.load_state_dict(known)
            self.posterior.passes.planner.restore(state["passes"])
            self.number = int(state["step"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, BellaError):
                raise
            raise BellaError(
                f"The state of the coupling is none of this loop's ({shortened(error)}): give it "
                "the same transport and movers, or begin anew."
            ) from None

    def add_divergence(self) -> None:
        """The gradient of n λ KL / N, where the posterior has a distribution for each particle."""
        weight = self.kl_weight(self.number) if callable(self.kl_weight) else self.kl_weight
        weight *= self.posterior.particles / self.move.data_size
        (weight * self.posterior.kl()).backward()

    @torch.no_grad()
    def clipped(self) -> Tensor:
        """Clip each particle's gradient norm by itself, and say what the norms were.

        One common norm would couple the particles: n of them would not train as n single ones do.
        Parameters that all particles share are clipped together.

        Returns:
            The norms before, (particles + 1,); the last is of what is shared.
        """
        stacked = {id(p) for site in self.posterior.sites() for p in site.parameters}
        graded = [p for p in self.parameters if p.grad is not None]
        own = [p.grad for p in graded if id(p) in stacked]
        rest = [p for p in graded if id(p) not in stacked]
        shared = get_total_norm([p.grad for p in rest])
        norms = shared.new_zeros(self.posterior.particles)
        if own:
            norms = torch.stack([_norms(grad) for grad in own]).norm(dim=0)
        if self.clip is not None:
            factors = (self.clip / (norms + 1e-6)).clamp_max(1)
            for grad in own:
                grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)).to(grad.dtype))
            clip_grads_with_norm_(rest, self.clip, shared)
        return torch.cat((norms, shared.to(norms).view(1)))

    def what_is_not_finite(self, losses: Tensor | None) -> str:
        """In words: the loss of some particles, their distance, or the gradient of a layer."""
        when = f"in step {self.number}"
        if losses is not None and not torch.isfinite(losses).all():
            wrong = (~torch.isfinite(losses)).nonzero().flatten().tolist()
            return f"The loss became {float(losses[wrong[0]])} {when} ({particles_named(wrong)})"
        apart = self.move.where_not_finite()
        if apart is not None:
            layer, who = apart
            return (
                f"The distance of particles became NaN or infinite {when} ({layer}, "
                f"{particles_named(who)})"
            )
        graded = {
            name: p.grad for name, p in self.posterior.named_parameters() if p.grad is not None
        }
        place = where_not_finite(self.posterior, graded)
        return f"A gradient became NaN or infinite {when} ({place or 'the sum of all'})"


def _norms(grad: Tensor) -> Tensor:
    """Of each particle's part of a stacked gradient, in float32 or better: (particles,)."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    return torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=dtype)
