"""`bella.fit`: train the particles of a posterior in one call.

Everything here can be had without it: a transport, any torch optimiser and an ordinary loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bella import transport
from bella.console import progress_bar
from bella.errors import BellaError, require
from bella.files import shortened
from bella.inputs import split, to
from bella.particles.prefix import Stream
from bella.particles.recompute import checkpoint
from bella.posterior import Posterior
from bella.storage import own_tensors
from bella.training.annealing import kl_weight
from bella.training.batches import Data, epoch_seed, loader, own_batches
from bella.training.cache import CachedPrefix, CacheTooLargeError, is_fixed
from bella.training.checkpoint import check_optimizer, forget, read_checkpoint, write_checkpoint
from bella.training.gradients import Gradients, clip_particles
from bella.training.record import Record
from bella.training.schedule import learning_rate_factor
from bella.training.settings import Settings, checked
from bella.trees import check_finite

Skip = Callable[[int], bool]


def fit(
    posterior: Posterior,
    train: Data,
    *,
    validation: Data | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    instead_of_step: Skip | None = None,
    progress: bool = True,
    **settings: Any,
) -> Record:
    """Train the particles, all in one pass, coupled by a transport.

    Args:
        posterior: what `bella.low_rank` (or another constructor) made; trained in place and moved
            to the accelerator if there is one.
        train: a data set of (inputs, label), a pair of tensors, or a ``DataLoader``.
        validation: the same; decides the epoch that is kept, and early stopping.
        folder: run folder: settings, versions, history, curves, checkpoint, and the posterior.
        resume: continue the run that ``folder`` holds, to the same bits as if it had never
            stopped; ``False`` begins anew.
        optimizer: makes the optimiser from the parameters; AdamW by default.
        instead_of_step: called with the step's number after each backward pass; where it returns
            ``True`` it replaces the optimiser's step (SSVI changes its active set this way).
        progress: show bars.
        **settings: the fields of `Settings`: epochs, learning_rate, transport, seed, ...

    Returns:
        The record of the run.

    Raises:
        BellaError: settings out of range, unusable data, or a loss that is not finite.
    """
    run = Run(
        posterior,
        train,
        validation=validation,
        folder=Path(folder) if folder is not None else None,
        optimizer=optimizer,
        instead_of_step=instead_of_step,
        settings=checked(Settings, settings),
    )
    with progress_bar(progress) as bar, torch.random.fork_rng():
        return run.execute(bar, resume=resume)


class Run:
    """One call of `fit`: its parts, and the loop over them."""

    def __init__(
        self,
        posterior: Posterior,
        train: Data,
        *,
        validation: Data | None,
        folder: Path | None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None,
        instead_of_step: Skip | None,
        settings: Settings,
    ):
        accelerate = require("accelerate", "fit")
        self.settings = settings
        self.folder = folder
        self.posterior = posterior
        self.instead_of_step = instead_of_step
        # Accelerate keeps one precision a process; two runs may differ in it.
        accelerate.state.AcceleratorState._reset_state()
        self.accelerator = accelerate.Accelerator(mixed_precision=settings.precision)
        if self.accelerator.num_processes > 1:
            raise BellaError("bella.fit runs in one process: start it without a launcher.")
        posterior.to(self.accelerator.device)
        if settings.checkpoint:
            named = settings.checkpoint
            checkpoint(posterior, None if named is True else named)

        self.train = loader(train, settings.batch_size, shuffle=True)
        self.validation = (
            None if validation is None else loader(validation, settings.batch_size, shuffle=False)
        )
        groups = posterior.parameter_groups(settings.weight_decay)
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.optimizer = self.accelerator.prepare_optimizer(
            torch.optim.AdamW(groups, lr=settings.learning_rate)
            if optimizer is None
            else optimizer(self.parameters)
        )
        self.steps_per_epoch = math.ceil(len(self.train) / settings.accumulate)
        self.steps = self.steps_per_epoch * settings.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer.optimizer,
            lambda step: learning_rate_factor(step, self.steps, settings.warmup),
        )
        options = {"warmup": round(settings.coupling_warmup * self.steps)}
        self.data_size = examples(self.train)
        self.move = transport.by_name(
            settings.transport,
            posterior,
            data_size=self.data_size,
            **(options | settings.transport_options),
        )
        if settings.minibatches == "own" and settings.transport == "function":
            raise BellaError("transport 'function' compares predictions on one batch: share it.")
        if settings.memory_budget is not None and settings.particles_per_pass != "auto":
            raise BellaError(
                "memory_budget is for particles_per_pass='auto': give both, or neither."
            )
        self.gradients = Gradients(posterior, self.accelerator, self.move, settings)
        self.step = 0
        self.log_every = max(1, self.steps // 60)
        self.trace: list[dict[str, float]] = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None

    # ------------------------------------------------------------ the loop

    def execute(self, bar: Progress, *, resume: bool) -> Record:
        """All epochs; returns the record."""
        record = Record(self.settings.model_dump(), folder=self.folder)
        if not resume and self.folder is not None:
            forget(self.folder)
        first = self.load_checkpoint(record)
        begun = time.perf_counter() - record.seconds
        self.share_prefix(bar)
        task = bar.add_task("training", total=self.steps, completed=self.step)
        for epoch in range(first, self.settings.epochs):
            if self.should_stop(epoch):
                break
            torch.manual_seed(epoch_seed(self.settings.seed, epoch))
            figures = self.run_epoch(epoch, bar, task)
            if self.validation is not None:
                figures |= self.validate()
            self.keep(epoch, figures)
            record.history.append(figures)
            record.trace = self.trace
            record.particles_per_pass = self.gradients.at_once
            record.seconds = time.perf_counter() - begun
            self.save_checkpoint(epoch + 1, record)
        bar.remove_task(task)
        self.restore_best()
        record.best_epoch = self.best[1] + 1 if self.best else len(record.history)
        record.seconds = time.perf_counter() - begun
        self.posterior.eval()
        if self.folder is not None:
            self.posterior.save(self.folder)
            record.write()
        return record

    def share_prefix(self, bar: Progress) -> None:
        """Put caches of the shared prefix in the place of the data, where that is allowed."""
        wanted, device = self.settings.cache_prefix, self.accelerator.device
        if wanted is False or self.settings.minibatches == "own":
            return

        def cached(data: DataLoader) -> DataLoader:
            if wanted == "auto" and not is_fixed(self.posterior, data, device):
                return data
            try:
                with self.accelerator.autocast():
                    kept = CachedPrefix(
                        self.posterior,
                        data,
                        limit=self.settings.cache_bytes,
                        disk_limit=self.settings.cache_disk_bytes,
                        device=device,
                        progress=bar,
                    )
            except CacheTooLargeError:
                if wanted == "auto":
                    return data
                raise
            shuffle = not isinstance(data.sampler, torch.utils.data.SequentialSampler)
            return loader(data, 0, shuffle=shuffle, items=kept, collate=kept.batch)

        self.posterior.train()  # a prefix with dropout shows itself only in training mode
        self.train = cached(self.train)
        if self.validation is not None:
            self.validation = cached(self.validation)

    def run_epoch(self, epoch: int, bar: Progress, task: Any) -> dict[str, float]:
        """One pass over the data."""
        settings = self.settings
        self.posterior.train()
        batches: Iterable[Any] = self.train
        if settings.minibatches == "own":
            seed = epoch_seed(settings.seed, epoch)
            batches = own_batches(self.train, self.posterior.particles, seed)
        total = torch.zeros((), device=self.accelerator.device)
        group: list[Any] = []
        count = 0
        last = len(self.train)
        for number, batch in enumerate(batches, start=1):
            group.append(batch)
            if len(group) < settings.accumulate and number < last:
                continue
            loss = self.update(group, epoch)
            total += loss
            count += 1
            group = []
            bar.advance(task)
            if self.step % self.log_every == 0 or number == last:
                mean = float(total) / count / self.posterior.particles
                self.trace.append(
                    {"step": self.step, "loss": mean, "distance": self.move.distance()}
                )
                bar.update(task, description=f"epoch {epoch + 1}/{settings.epochs} loss {mean:.3f}")
        return {
            "epoch": epoch + 1,
            "loss": float(total) / count / self.posterior.particles,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **self.move.log,
        }

    def update(self, group: list[Any], epoch: int) -> Tensor:
        """One step of the optimiser, from one or more batches. Returns the loss."""
        total = torch.zeros((), device=self.accelerator.device)
        for batch in group:
            args, kwargs, labels = split(to(batch, self.accelerator.device))
            total += self.gradients.add(args, kwargs, labels, len(group))
        if self.posterior.stochastic:
            self.add_divergence()
        if not torch.isfinite(total):
            check_finite([examples_of(batch) for batch in group], "The training inputs")
            raise BellaError(
                f"The loss became {float(total)} in epoch {epoch + 1}, step {self.step + 1}: lower "
                "the learning rate or the temperature, or set clip."
            )
        skip = self.instead_of_step is not None and self.instead_of_step(self.step)
        if not skip:
            self.accelerator.unscale_gradients(self.optimizer)
            self.move.step(learning_rate=self.optimizer.param_groups[0]["lr"])
            if self.settings.clip is not None:
                clip_particles(self.posterior, self.parameters, self.settings.clip)
            self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total

    def add_divergence(self) -> None:
        """The gradient of the weighted divergence from the prior, of stochastic posteriors."""
        weight = self.settings.kl_weight / self.data_size
        weight *= kl_weight(
            self.step, steps_per_epoch=self.steps_per_epoch, epochs=self.settings.kl_warmup
        )
        self.accelerator.backward(weight * self.posterior.kl())

    # ------------------------------------------------------------ validation and the best epoch

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL and accuracy of the predictive on the validation data."""
        from bella.evaluation.evaluate import collect
        from bella.metrics import accuracy

        assert self.validation is not None
        with self.accelerator.autocast():
            predictive, labels = collect(
                self.posterior,
                self.validation,
                particles_per_pass=self.gradients.at_once,
            )
        return {
            "validation_nll": float(predictive.nll(labels)),
            "validation_accuracy": float(accuracy(predictive.probs, labels)),
        }

    def keep(self, epoch: int, figures: dict[str, float]) -> None:
        """Remember the particles of the best epoch so far."""
        if self.settings.keep == "last" or "validation_nll" not in figures:
            return
        score = figures["validation_nll"]
        if self.best is None or score < self.best[0]:
            own = {
                name: value.detach().clone() for name, value in own_tensors(self.posterior).items()
            }
            self.best = (score, epoch, own)

    def should_stop(self, epoch: int) -> bool:
        """Whether ``patience`` epochs brought nothing better."""
        patience = self.settings.patience
        return patience is not None and self.best is not None and epoch - self.best[1] > patience

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best epoch's particles back."""
        if self.best is not None:
            for name, value in own_tensors(self.posterior).items():
                value.copy_(self.best[2][name])

    # ------------------------------------------------------------ stopping and going on

    def save_checkpoint(self, epoch: int, record: Record) -> None:
        """Keep what the next epoch depends on."""
        if self.folder is None:
            return
        scaler = self.accelerator.scaler
        state = {
            "settings": self.settings.model_dump(),
            "epoch": epoch,
            "step": self.step,
            "own": {name: v.detach() for name, v in own_tensors(self.posterior).items()},
            "optimizer": self.optimizer.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "move": self.move.state_dict(),
            "particles_per_pass": self.gradients.at_once,
            "best": self.best,
            "history": record.history,
            "trace": self.trace,
            "seconds": record.seconds,
        }
        write_checkpoint(self.folder, state)
        record.write()

    @torch.no_grad()
    def load_checkpoint(self, record: Record) -> int:
        """Continue from the folder's checkpoint, if it has one; returns the first epoch to run."""
        if self.folder is None:
            return 0
        asked, device = self.settings.model_dump(), self.accelerator.device
        state = read_checkpoint(self.folder, asked, device)
        if state is None:
            return 0
        own = own_tensors(self.posterior)
        if own.keys() != state["own"].keys() or any(
            own[name].shape != state["own"][name].shape for name in own
        ):
            raise BellaError(
                f"{self.folder} holds the run of another posterior: name another folder."
            )
        for name, value in own.items():
            value.copy_(state["own"][name])
        try:
            check_optimizer(state["optimizer"], self.parameters)
            self.optimizer.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.move.load_state_dict(state["move"])
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
        ) as error:
            raise BellaError(
                f"The checkpoint in {self.folder} does not fit this optimiser "
                f"({shortened(error)}): name another folder, or begin anew with --fresh "
                "(resume=False)."
            ) from None
        self.best, self.step = state["best"], state["step"]
        self.gradients.at_once = record.particles_per_pass = state["particles_per_pass"]
        record.history, record.seconds = state["history"], state["seconds"]
        record.trace = self.trace = state["trace"]
        return state["epoch"]


def examples_of(batch: Any) -> Any:
    """The inputs of a batch; of a stream what differs between examples, not its placeholders."""
    args, kwargs, _ = split(batch)
    return args[0].carried() if args and isinstance(args[0], Stream) else (args, kwargs)


def examples(data: DataLoader) -> int:
    """Number of training examples."""
    dataset = getattr(data, "dataset", None)
    if dataset is not None and hasattr(dataset, "__len__"):
        return len(dataset)
    return len(data) * (data.batch_size or 1)
