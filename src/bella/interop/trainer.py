"""transformers' Trainer on a posterior: its loop, its data, its files, and coupled particles.

    move = bella.transport.repulsive(posterior, data_size=len(train))
    Trainer(posterior, arguments, train_dataset=train, move=move).train()

It is a subclass and no callback, because a callback alone comes after the Trainer has clipped all
particles by one common norm, and cannot say what is saved or predicted. Classes that derive from
the Trainer take part as a second base: ``class Mine(bella.interop.trainer.Trainer, Theirs)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bella.classes import ClassAxis
from bella.errors import BellaError, require
from bella.files import read_json, write_json
from bella.inputs import split
from bella.interop.steps import check_alone, step_of
from bella.likelihood import IGNORED, likelihood_of_outputs, logits_of, resolve, targets_of
from bella.posterior import Posterior
from bella.posteriors.loading import fill
from bella.prediction.predictive import Predictive
from bella.storage import read
from bella.training.step import Step
from bella.transport.base import Transport

require("transformers", "trainer")
require("accelerate", "trainer")
import transformers as hf  # noqa: E402

STEP = "coupling.json"
"""What the coupling needs to go on, beside the Trainer's own files in a checkpoint."""


OWN_LOSS = "The loss of particles is the negative log-likelihood of their labels"


def check_arguments(args: hf.TrainingArguments) -> None:
    """Refuse what would undo the coupling.

    Raises:
        BellaError: several processes, another loss, or parameters that are divided up.
    """
    check_alone(max(args.world_size, args.n_gpu), "transformers' Trainer")
    if args.label_smoothing_factor:
        raise BellaError(f"{OWN_LOSS}: leave out label_smoothing_factor.")
    if args.deepspeed or args.fsdp:
        raise BellaError(
            "DeepSpeed and FSDP exchange the parameters that bella's particles are made of: leave "
            "them out, or train with bella.fit under torchrun."
        )


class Trainer(hf.Trainer):
    """A Trainer whose model is a posterior.

    What it does its own way:

    - the loss is summed over particles, and every label that counts weighs the same in a step,
      however its batches divide them; the Trainer would average both. Its log shows the mean over
      particles, and as ``grad_norm`` the norm of the coupled gradients, before they are clipped;
    - between backward and the optimiser the particles are coupled and each is clipped by itself to
      ``max_grad_norm``, after fp16's scale is taken away;
    - weight decay is left away where the posterior says so;
    - a checkpoint holds the particles, as `Posterior.save` writes them, and not the base;
    - evaluation scores the predictive: its negative log-likelihood is the loss, and
      ``compute_metrics`` gets its log-probabilities in the place of logits.

    Args:
        model: the posterior.
        args: ``transformers.TrainingArguments``.
        move: the transport, made for this posterior.
        movers: what changes the posterior beside it, see `bella.fit`.
        likelihood: what the labels are, see `bella.fit`.
        kl_weight: factor on the divergence of stochastic posteriors, see `bella.fit`.
        **options: those of transformers' Trainer.

    Raises:
        BellaError: another model, a transport of another posterior, or arguments that would undo
            the coupling (label smoothing, a loss function, DeepSpeed, FSDP, several processes).
    """

    loss_is_scaled_for_ga = True  # `Step.ready` divides by the labels of all accumulated batches

    def __init__(
        self,
        model: Posterior,
        args: hf.TrainingArguments | None = None,
        *,
        move: Transport,
        movers: tuple = (),
        likelihood: str = "auto",
        kl_weight: float = 1.0,
        **options: Any,
    ):
        if not isinstance(model, Posterior) or move.posterior is not model:
            raise BellaError(
                "The model must be a posterior of bella (bella.low_rank(network), say), and move a "
                "transport that was made for it."
            )
        if args is not None:
            check_arguments(args)
        if options.get("compute_loss_func") is not None:
            raise BellaError(f"{OWN_LOSS}: leave out compute_loss_func.")
        self.steps: Step | None = None
        self.posterior = model
        self.own_options: dict[str, Any] = {
            "movers": movers,
            "likelihood": likelihood,
            "kl_weight": kl_weight,
        }
        super().__init__(model, args, **options)
        self.move = move
        self.class_axis = ClassAxis()
        self.label_names = self.args.label_names or ["labels"]

    @property
    def step(self) -> Step:
        """The step that couples the particles; there is one once training has begun."""
        if self.steps is None:
            raise BellaError("The Trainer has no optimiser yet: call train() first.")
        return self.steps

    # ------------------------------------------------------------ the step

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, over the posterior's own groups; the step comes with it."""
        if self.optimizer is None:
            kind, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args,
                self.posterior,  # type: ignore[arg-type]
            )
            groups = self.posterior.parameter_groups(self.args.weight_decay)
            self.optimizer_cls_and_kwargs = kind, {**options, "params": groups}
        optimizer = super().create_optimizer(model)
        self.steps = step_of(
            self.move,
            optimizer,
            clip=self.args.max_grad_norm or None,
            scaler=self.accelerator.scaler,
            **self.own_options,
        )
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """What goes backward, see `Step.loss`."""
        args, kwargs, labels = split(inputs, self.posterior.network)
        outputs = model(*args, **kwargs)
        loss = self.step.loss(outputs, labels)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """A batch's gradients; returns its part of what the log shows, a mean over particles."""
        if self.step.number != self.state.global_step:
            raise BellaError(
                f"The Trainer has made {self.state.global_step} steps and coupled the particles in "
                f"{self.step.number}: this transformers {hf.__version__} does not ask for the "
                "gradients' norm before its optimiser steps, or the checkpoint is another run's."
            )
        super().training_step(model, inputs, num_items_in_batch)
        return self.step.said.mean() / self.current_gradient_accumulation_steps

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Nothing: a common norm would couple the particles. `Step.ready` clips each by itself."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Tensor:
        """Asked for between backward and the optimiser: here the particles are coupled."""
        self.accelerator.unscale_gradients()
        self.step.ready()
        return self.step.norms.norm()

    def _set_signature_columns_if_needed(self) -> None:
        """A data set's columns are those of the network, not the posterior's ``*args``."""
        self.model = self.posterior.network
        try:
            super()._set_signature_columns_if_needed()
        finally:
            self.model = self.posterior

    # ------------------------------------------------------------ prediction

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The predictive of a batch: its mean negative log-likelihood (over the labels that count),
        log-probabilities (batch, ..., classes), labels."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        args, named = (), inputs
        if labels is not None:
            args, named, labels = split(inputs, self.posterior.network)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(*args, **named)
        predictive = Predictive(self.class_axis.place(logits_of(outputs), outputs, labels))
        loss = None
        if labels is not None:
            kind = resolve(self.own_options["likelihood"], self.posterior.network)
            targets = targets_of(labels, kind or likelihood_of_outputs(outputs))
            counts = bool((targets != IGNORED).any())
            nll = predictive.nll(targets) if counts else 0.0
            loss = torch.tensor(nll, device=labels.device)
        if prediction_loss_only:
            return loss, None, None
        return loss, predictive.log_probs, labels

    # ------------------------------------------------------------ files

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The particles, and what makes the inputs (a tokenizer)."""
        folder = Path(output_dir or str(self.args.output_dir))
        self.posterior.save(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """The particles of a checkpoint, in their place."""
        fill(self.posterior, read(Path(resume_from_checkpoint)))

    def _load_best_model(self) -> None:
        """The particles of the best checkpoint."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Beside the Trainer's own files what the coupling needs."""
        super()._save_optimizer_and_scheduler(output_dir)
        write_json(Path(output_dir) / STEP, self.step.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """And back."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.step.load_state_dict(read_json(Path(checkpoint) / STEP))
