"""The gradients of the batches of one step, in as many passes as the particles need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bella import likelihood as likelihoods
from bella import memory
from bella.classes import ClassAxis
from bella.inputs import to
from bella.parallel.mesh import Mesh
from bella.posterior import Posterior
from bella.precision import Precision
from bella.training.randomness import Apart
from bella.training.shares import share_of
from bella.transport.base import Transport

Batch = tuple[tuple, dict[str, Any], Tensor] | tuple[tuple, dict[str, Any], Tensor, Tensor | None]
"""Positional inputs, named inputs and labels, see `bella.inputs.split`; perhaps what each example
weighs, (batch,), or (particles, batch) where each particle has its own."""


class Loss(NamedTuple):
    """What a step's batches cost.

    Attributes:
        mean: each particle's mean over the labels that count, in nats, (particles,).
        counted: how many labels that was, or the sum of their weights; a mean over particles.
    """

    mean: Tensor
    counted: float


class Gradients:
    """Adds the gradients of batches to the particles' ``.grad``.

    Several batches are one batch: every label that counts weighs what it weighs, in whichever it
    is.
    Particles run in chunks, each of which goes backward before the next one runs, so that only one
    chunk's activations are held.

    Args:
        posterior: whose particles train.
        move: told what it listens to in a pass.
        likelihood: a name in `bella.likelihood.LIKELIHOODS`; ``auto``: the network's own.
        mean_over: all ``labels`` that count, or ``examples``; see `bella.nll`.
        class_weights: see `bella.nll`.
        minibatches: all particles see the ``shared`` batch, or each its ``own``: inputs and labels
            (particles, batch, ...).
        particles_per_pass: run so many at once; ``auto`` for as many as fit into
            ``memory_budget``, measured on the first batch; ``None`` for all.
        memory_budget: bytes, see `bella.memory.at_once`.
        precision: of the passes.
        mesh: the processes that share the examples and the particles; each gets the same batches
            and runs its part of them.

    Attributes:
        at_once: particles a pass; ``None`` until the first batch shows how many fit. It is part of
            a checkpoint, because free memory differs between runs.
        apart: what passes draw random numbers from.

    Raises:
        BellaError: the network's own loss is none of ours.
    """

    def __init__(
        self,
        posterior: Posterior,
        move: Transport,
        *,
        likelihood: str = "auto",
        mean_over: likelihoods.Mean = "labels",
        class_weights: Sequence[float] | None = None,
        minibatches: Literal["shared", "own"] = "shared",
        particles_per_pass: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        precision: Precision | None = None,
        mesh: Mesh | None = None,
    ):
        self.posterior = posterior
        self.mesh = mesh or Mesh()
        self.apart = Apart(self.mesh.world.rank, self.mesh.world.size)
        self.proven: frozenset[str] = frozenset()  # kinds of passes that all processes agree on
        self.move = move
        self.likelihood = likelihoods.resolve(likelihood, posterior.network)
        if self.likelihood is not None:
            move.check_likelihood(self.likelihood)
        self.weighing: dict[str, Any] = {"mean_over": mean_over, "class_weights": class_weights}
        self.own = minibatches == "own"
        self.class_axis = ClassAxis()
        self.budget = memory_budget
        self.precision = precision or Precision("float32", next(posterior.parameters()).device)
        wanted = particles_per_pass or posterior.particles
        self.at_once: int | None = None if wanted == "auto" else wanted

    def add(self, batches: Sequence[Batch], device: torch.device) -> Loss:
        """Of the batches of one step, each moved to the device when its turn comes.

        Raises:
            BellaError: examples that depend on each other cannot be shared out.
        """
        if self.mesh.data.size > 1:
            batches = [self.share(batch, device) for batch in batches]
        counts = [self.count(batch) for batch in batches]
        counted = torch.stack(counts).sum(0)
        self.mesh.data.sum([counted])
        self.agree(batches, device)
        whole = torch.where(counted > 0, counted, 1)
        total = torch.zeros(self.posterior.particles, device=device)
        for (args, kwargs, labels, *more), count in zip(batches, counts, strict=True):
            # A force that enters in every backward pass is shared out as the labels are.
            share = float(count.sum() / whole.sum())
            self.move.accumulate = 1 / share if share else float("inf")
            self.move.loss_scale = self.precision.scale
            args, kwargs, labels, *more = to((args, kwargs, labels, *more), device)
            total += self.add_one(args, kwargs, labels, whole.to(device), *more)
        self.add_up(total)
        total = self.mesh.particles.gather(total, self.posterior.total)
        return Loss(total, float(counted.double().mean()))

    def share(self, batch: Batch, device: torch.device) -> Batch:
        """This process's examples of a batch that all processes have."""
        with self.precision.autocast():
            return share_of(self.posterior, to(batch, device), self.mesh.data)

    def agree(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Let all processes run a kind of pass the same way: as the first that met it proved it."""
        world, planner = self.mesh.world, self.posterior.passes.planner
        if world.size == 1 or self.own:
            return
        for args, kwargs, *_ in batches:
            with self.precision.autocast():
                self.posterior.prove(*to(args, device), **to(kwargs, device))
        news = torch.tensor(int(planner.kinds() != self.proven))
        world.sum([news])
        if news:
            states = world.everyone(planner.state(changed=True))
            plans = {kind: plan for state in states[::-1] for kind, plan in state["plans"].items()}
            planner.restore(states[0] | {"plans": plans})
            self.proven = planner.kinds()

    def add_up(self, total: Tensor) -> None:
        """Of the processes' parts of a step: over those with other examples all gradients, over
        those with other particles the gradients of what all particles share."""
        if self.mesh.world.size == 1:
            return
        stacked = {id(p) for p in self.posterior.stacked_parameters().values()}
        trained = [p for p in self.posterior.parameters() if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in trained if p.grad is not None]
        self.mesh.data.sum([total, *grads, *self.move.heard()])
        shared = [p.grad for p in trained if id(p) not in stacked and p.grad is not None]
        self.mesh.particles.sum(shared)

    def add_one(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        labels: Tensor,
        whole: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Of one batch of a step in which ``whole`` (particles,) labels count.

        Returns:
            Its share of each particle's loss, (particles,).
        """
        posterior = self.posterior
        if self.at_once is None:
            chosen = self.choose_at_once(args, kwargs, labels, weights)
            self.at_once = self.mesh.world.first(chosen)
        at_once = self.at_once
        if at_once > 1 and not self.own and self.move.separates:
            with self.precision.autocast():
                if not posterior.plan_for(*args, **kwargs).folds:
                    at_once = 1  # they loop anyway, and so one particle's activations are held
        chunks = memory.parts(range(posterior.particles), at_once)
        shares = []
        if len(chunks) > 1:
            with self.precision.autocast():
                if not self.own and not posterior.trains_base:
                    args, kwargs = posterior.begun(*args, **kwargs)
                self.move.prepare(*args, **kwargs)
        for chunk in chunks:
            share = self.losses(chunk, args, kwargs, labels, weights) / whole[chunk]
            self.precision.backward(share.sum())
            shares.append(share.detach())
        return torch.cat(shares)

    def losses(
        self,
        chunk: list[int],
        args: tuple,
        kwargs: dict[str, Any],
        labels: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The losses of some particles on a batch, summed over its labels: (chunk,)."""
        posterior = self.posterior
        with self.precision.autocast(), self.apart.drawing(), posterior.subset(chunk):
            if not self.own:
                outputs = posterior(*args, **kwargs)
            else:
                own = [x[chunk] for x in args]
                named = {key: value[chunk] for key, value in kwargs.items()}
                with posterior.own_inputs():
                    outputs, labels = posterior(*own, **named), labels[chunk]
                weights = None if weights is None else weights[chunk]
            sums, _ = likelihoods.losses(
                outputs,
                labels,
                likelihood=self.likelihood,
                own=self.own,
                class_axis=self.class_axis,
                weights=weights,
                **self.weighing,
            )
            return sums

    def count(self, batch: Batch) -> Tensor:
        """How many labels of a batch count for each particle, or the sum of their weights,
        (particles,), where they are."""
        args, kwargs, labels, *more = batch
        if self.likelihood is None:
            self.likelihood = self.find_likelihood(args, kwargs)
            self.move.check_likelihood(self.likelihood)
        targets = self.likelihood.targets(labels)
        weighed = likelihoods.weigh(
            targets,
            self.likelihood,
            weights=more[0] if more else None,
            batch_axis=int(self.own),
            **self.weighing,
        )
        counted = self.likelihood.counted(targets) if weighed is None else weighed
        n = self.posterior.particles
        return counted.flatten(1).sum(1) if self.own else counted.sum().expand(n)

    @torch.no_grad()
    def find_likelihood(self, args: tuple, kwargs: dict[str, Any]) -> likelihoods.Likelihood:
        """The likelihood by the type of the outputs: one pass of one particle, once."""
        posterior, device = self.posterior, next(self.posterior.parameters()).device
        args, kwargs = to((args, kwargs), device)
        with memory.undisturbed(posterior), self.precision.autocast(), posterior.subset([0]):
            if self.own:
                args = tuple(x[:1] for x in args)
                kwargs = {key: value[:1] for key, value in kwargs.items()}
                with posterior.own_inputs():
                    outputs = posterior(*args, **kwargs)
            else:
                outputs = posterior(*args, **kwargs)
            return likelihoods.by_name(likelihoods.likelihood_of_outputs(outputs))

    def choose_at_once(
        self, args: tuple, kwargs: dict[str, Any], labels: Tensor, weights: Tensor | None = None
    ) -> int:
        """How many particles fit into the budget with this batch."""
        posterior = self.posterior
        if not self.own:
            with memory.undisturbed(posterior), self.precision.autocast():
                posterior.prove(*args, **kwargs)

        def loss() -> Tensor:
            return self.losses(list(posterior.axis.chosen), args, kwargs, labels, weights).sum()

        return memory.at_once(posterior, memory.training_step(posterior, loss), self.budget)
