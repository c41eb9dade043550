"""`bella.fit`: train the particles of a posterior in one call.

Everything here can be had without it: a transport, any torch optimiser and an ordinary loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from bella import transport
from bella.console import progress_bar
from bella.data.loaders import Data, check_collate, opened
from bella.errors import BellaError, Terminated
from bella.files import shortened
from bella.folders import held
from bella.host import device_named
from bella.inputs import check_names, split, to, weights_of
from bella.kernels import DEFAULT, fastest
from bella.memory import undisturbed
from bella.parallel.division import Division
from bella.parallel.mesh import Mesh, mesh_of
from bella.parallel.ranks import joined, local_rank
from bella.particles.recompute import recompute
from bella.posterior import Posterior
from bella.precision import precision_for
from bella.prediction.agreement import decide
from bella.prediction.predict import predict
from bella.prediction.said import Said
from bella.training.annealing import kl_weight
from bella.training.batches import (
    batches_per_epoch,
    begin_epoch,
    epoch_seed,
    examples_of,
    first_of,
    for_training,
    grouped,
    own_batches,
    warn_of_generators,
)
from bella.training.cache import cached
from bella.training.checkpoint import forget, holds_run, read_checkpoint, write_checkpoint
from bella.training.checks import MEND, DivergedError, check_can_train, check_particles
from bella.training.collapse import PAIRS, Collapse
from bella.training.gradients import Batch, Gradients, Loss
from bella.training.identity import identity_of
from bella.training.kept import Kept
from bella.training.optimizer import MakeOptimizer, begin, make_optimizer, make_schedule
from bella.training.position import Position, labels_after
from bella.training.randomness import Drawn, own_randomness, seed_all
from bella.training.record import Record, describe
from bella.training.samplers import examples
from bella.training.settings import Settings, checked
from bella.training.shares import check_can_share, checksum
from bella.training.state import State
from bella.training.step import Step
from bella.training.stops import Stops, answered
from bella.training.validation import Validation
from bella.training.watching import Watcher, Watchers
from bella.transport.base import Mover
from bella.trees import check_finite


def fit(
    posterior: Posterior,
    train: Data,
    *,
    validation: Data | None = None,
    collate_fn: Callable[[list], Any] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    optimizer: MakeOptimizer | None = None,
    movers: Sequence[Mover] = (),
    watch: Sequence[Watcher] = (),
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    before_save: Callable[[], None] | None = None,
    **settings: Any,
) -> Record:
    """Train the particles, all in one pass, coupled by a transport.

    Nothing of the process is changed: random numbers of Python, numpy and torch are afterwards as
    they were, and one seed decides all of them inside. They belong to the process, so that runs in
    threads of one process wait for each other.

    Started by a launcher (torchrun), the processes share out the examples of every batch, or the
    particles, and come where one process comes, to rounding; the first of them writes and speaks.
    All are given the same data and have all particles afterwards. See docs/scale.md.

    Args:
        posterior: what `bella.low_rank` (or another constructor) made; trained in place, on a GPU
            with CUDA if there is one, and else where it is.
        train: a data set of (inputs, label) or of mappings with ``labels``, a list of such, a pair
            of tensors, or a loader, whose sampler, batches and workers are used as they are.
        validation: the same; decides the epoch that is kept, and early stopping.
        collate_fn: puts examples of a data set into a batch (to pad texts, say); a loader has its
            own.
        folder: run folder: settings, versions, history, curves, checkpoint, and the posterior,
            which is the best (or the last) of the epochs that are done, also while the run goes on.
            Ctrl-C and SIGTERM then wait for the step that runs, save it, and go on as
            ``KeyboardInterrupt`` or as an exit with status 143.
        resume: continue the run that ``folder`` holds, to the same bits as if it had never
            stopped; more ``epochs`` continue a finished one. ``False`` begins anew; what was there
            stays until the first epoch is done.
        optimizer: makes the optimiser from `Posterior.parameter_groups`, so that what must not
            decay does not; AdamW by default.
        movers: what changes the posterior beside the transport, asked before it: SSVI's
            `Topology`, which changes the active set instead of an optimiser's step.
        watch: functions that are told the figures while it trains, (step, figures by name): see
            `bella.training.watching`. Of several processes the first one tells them.
        progress: show bars.
        identity: what else decides the run (JSON values by name): it is continued only where this
            is the same, as its network, posterior, data, settings and optimiser have to be.
        before_save: called once, just before the first of the folder's files is written.
        **settings: the fields of `Settings`: epochs, learning_rate, transport, seed, ...

    Returns:
        The record of the run.

    Raises:
        BellaError: settings out of range, unusable data, a folder that holds another run (which is
            then as it was), that another process trains in or that was moved meanwhile, a loss
            that the network has and bella has not, or training that left the finite numbers: the
            particles are then as in the best epoch before, and so in ``folder``, or as at the
            start if there was none; of several processes one has ended, or what is asked for is
            defined in one alone.
    """
    chosen = checked(Settings, settings)
    check_can_train(posterior)
    with ExitStack() as inside:
        inside.enter_context(own_randomness())
        inside.enter_context(torch.enable_grad())
        world = inside.enter_context(joined())
        mesh = mesh_of(world, chosen.particle_processes)
        check_can_share(posterior, mesh, chosen, movers)
        in_place = None
        if folder is not None and world.leads:
            in_place = inside.enter_context(held(Path(folder)))
        # Several processes are stopped at different steps: their last checkpoint stands.
        stops = inside.enter_context(answered(folder is not None and world.size == 1))
        bar = inside.enter_context(progress_bar(progress and world.leads))
        seed_all(chosen.seed)
        run = Run(
            posterior,
            train,
            validation=validation,
            collate_fn=collate_fn,
            folder=Path(folder) if folder is not None else None,
            optimizer=optimizer,
            movers=movers,
            watch=watch if world.leads else (),
            settings=chosen,
            identity=identity,
            before_save=before_save,
            in_place=in_place,
            mesh=mesh,
            stops=stops,
        )
        try:
            return run.execute(bar, resume=resume)
        except RuntimeError as error:
            if "dtype" not in str(error) and "Inference tensors" not in str(error):
                raise
            raise BellaError(
                f"The network does not take the data as they are ({shortened(error)}): convert "
                "them first, x.float() for example, or x.clone() of what inference mode made."
            ) from error


class Run:
    """One call of `fit`: its parts, and the loop over them."""

    def __init__(
        self,
        posterior: Posterior,
        train: Data,
        *,
        validation: Data | None,
        collate_fn: Callable[[list], Any] | None,
        folder: Path | None,
        optimizer: MakeOptimizer | None,
        movers: Sequence[Mover],
        settings: Settings,
        watch: Sequence[Watcher] = (),
        identity: Mapping[str, Any] | None = None,
        before_save: Callable[[], None] | None = None,
        in_place: Callable[[], None] | None = None,
        mesh: Mesh | None = None,
        stops: Stops | None = None,
    ):
        self.stops = stops or Stops()
        self.mesh = mesh or Mesh()
        self.world = self.mesh.world
        self.settings = settings
        self.folder = folder
        self.before_save = before_save
        self.in_place = in_place
        self.posterior = posterior
        self.device = place_of(posterior, settings.device)
        posterior.to(self.device)
        self.division = Division(posterior, self.mesh.particles)
        self.precision = precision_for(posterior, settings.precision, settings.base_dtype)
        if settings.checkpoint:
            named = settings.checkpoint
            recompute(posterior, None if named is True else named)

        def loader(data: Data, shuffle: bool, what: str) -> Any:
            size = settings.batch_size
            return for_training(
                opened(data, size, shuffle=shuffle, collate_fn=collate_fn, what=what)
            )

        check_collate(collate_fn, train, validation)
        self.train = loader(train, True, "training data")
        validated = None if validation is None else loader(validation, False, "validation data")
        self.optimizer = make_optimizer(posterior, settings, optimizer)
        self.batches = batches_per_epoch(self.train)
        self.steps_per_epoch = math.ceil(self.batches / settings.accumulate)
        self.steps = self.steps_per_epoch * settings.epochs
        self.schedule = make_schedule(self.optimizer, self.steps, settings.warmup)
        options = {"warmup": round(settings.coupling_warmup * self.steps)}
        options |= settings.transport_options
        self.data_size = examples(self.train, options.pop("data_size", None))
        self.move = transport.by_name(
            settings.transport,
            posterior,
            data_size=self.data_size,
            **options,
        )
        if settings.minibatches == "own" and settings.transport == "function":
            raise BellaError("transport 'function' compares predictions on one batch: share it.")
        if settings.memory_budget is not None and settings.particles_per_pass != "auto":
            raise BellaError(
                "memory_budget is for particles_per_pass='auto': give both, or neither."
            )
        self.gradients = Gradients(
            posterior,
            self.move,
            likelihood=settings.likelihood,
            mean_over=settings.mean_over,
            class_weights=settings.class_weights,
            minibatches=settings.minibatches,
            particles_per_pass=settings.particles_per_pass,
            memory_budget=settings.memory_budget,
            precision=self.precision,
            mesh=self.mesh,
        )
        self.validation = (
            None
            if validated is None
            else Validation(posterior, validated, self.gradients, settings.likelihood)
        )
        self.step = Step(
            posterior,
            self.optimizer,
            self.move,
            movers=movers,
            clip=settings.clip,
            kl_weight=self.kl_weight,
            gradients=self.gradients,
            on_nonfinite=settings.on_nonfinite,
        )
        self.collapse = Collapse()
        self.identity: dict[str, Any] = {}
        mover_names = [type(mover).__name__ for mover in movers]
        if folder is not None:
            with self.division.whole():
                self.identity = identity_of(
                    posterior,
                    train=self.train,
                    validation=validated,
                    optimizer=self.optimizer,
                    settings=settings.model_dump(),
                    more={**({"movers": mover_names} if mover_names else {}), **(identity or {})},
                )
        self.world.check_same((self.steps, self.identity), "settings, network and data")
        self.validated: dict[str, float] = {}  # of the last epoch, for the bar
        self.kernel: str | None = None  # of float32 matrices; a resumed run's own
        self.agreement: dict[str, float] | None = None  # see `settle`
        self.resumed = False  # whether it goes on from a checkpoint
        self.writes = False  # whether the folder is this run's by now
        self.log_every = max(1, self.steps // 60)
        self.trace: list[dict[str, float]] = []
        self.watchers = Watchers(watch)
        self.kept = Kept(posterior)
        self.position = Position()
        self.state = State(self.step, self.schedule, self.kept, self.steps_per_epoch)

    # ------------------------------------------------------------ the loop

    def execute(self, bar: Progress, *, resume: bool) -> Record:
        """All epochs; returns the record."""
        record = Record(self.settings.model_dump(), folder=self.folder)
        first = self.load_checkpoint(record) if resume else 0
        if self.resumed:
            warn_of_generators(self.train)
        self.settle(record)
        with self.multiplying(record):
            return self.run_epochs(first, bar, record)

    def settle(self, record: Record) -> None:
        """Find out on the first batch whether fewer bits say what float32 says, and write it down;
        a run that goes on does as it did."""
        asked = self.settings
        if not self.resumed and self.precision.name != "float32":
            batch = first_of(self.train)
            run = None if batch is None else partial(self.predicted, batch)
            chosen, found = decide(self.posterior, asked.precision, asked.base_dtype, run)
            self.precision.become(self.world.first(chosen.name))
            self.agreement = None if found is None else asdict(found)
        record.precision = self.precision.facts()
        if self.agreement is not None:
            record.precision["differs_by"] = self.agreement

    def predicted(self, batch: Any) -> Said:
        """What the particles say of a training batch."""
        args, kwargs, labels = split(batch, self.posterior.network)
        inputs = to(kwargs or args, self.device)
        kind = self.gradients.likelihood or "auto"
        with undisturbed(self.posterior):
            return predict(self.posterior, inputs, likelihood=kind, labels=labels)

    @contextmanager
    def multiplying(self, record: Record) -> Iterator[None]:
        """One kernel for float32 matrices in all steps, all processes and all parts of the run."""
        wanted = self.kernel
        if wanted is None and self.world.size > 1:
            wanted = self.world.first(fastest(self.posterior).name)
        with self.precision.around(self.posterior, wanted) as kernel:
            self.kernel, record.float32 = kernel.name, kernel.facts()
            yield

    def run_epochs(self, first: int, bar: Progress, record: Record) -> Record:
        """The epochs from ``first`` on."""
        begun = time.perf_counter() - record.seconds
        self.share_prefix(bar)
        if self.validation is not None and first < self.settings.epochs:
            self.validation.check()
        task = bar.add_task("training", total=self.steps, completed=self.step.number)
        self.record, self.begun = record, begun
        for epoch in range(first, self.settings.epochs):
            if self.should_stop(epoch):
                break
            begin_epoch(self.train, self.settings.seed, epoch)
            self.gradients.apart.begin(epoch_seed(self.settings.seed, epoch))
            try:
                figures = self.run_epoch(epoch, bar, task)
                check_particles(self.posterior, f"in epoch {epoch + 1}")
                self.mesh.data.check_same(checksum(self.posterior), "particles after an epoch")
                if self.validation is not None:
                    self.validated = self.validation.run()
                    figures |= self.validated
            except DivergedError as error:
                raise self.given_up(error, record) from error
            except (KeyboardInterrupt, Terminated):
                if self.stops.asked is not None:
                    self.save_stopped(epoch)
                raise
            with self.stops.held():
                self.trace[-1] |= self.validated
                self.keep(epoch, figures)
                record.history.append(figures)
                self.position = Position()
                self.save_checkpoint(epoch + 1, record)
                self.watchers(self.trace[-1])
            bar.update(task, description=describe(figures, self.settings.epochs))
        bar.remove_task(task)
        self.kept.restore()
        self.division.end()
        record.seconds = time.perf_counter() - begun
        self.finish(record)
        return record

    def finish(self, record: Record) -> None:
        """Write down the particles as they are now."""
        record.best_epoch = self.kept.best_epoch or len(record.history)
        self.posterior.eval()
        if self.folder is not None and self.world.leads:
            self.begin_writing()
            self.posterior.save(self.folder)
            record.write()

    def given_up(self, error: DivergedError, record: Record) -> BellaError:
        """Put the best finite particles back, in the folder too, and say so."""
        epochs = self.kept.restore()
        self.division.end()
        if epochs:
            self.finish(record)
        kept = f"those of epoch {epochs}" if epochs else "as they were before training"
        return BellaError(f"{error.what}: {MEND}; the particles are {kept}.")

    def share_prefix(self, bar: Progress) -> None:
        """Put caches of the shared prefix in the place of the data, where that is allowed."""
        settings = self.settings
        if settings.minibatches == "own":
            if settings.cache_prefix is True:
                raise BellaError(
                    "cache_prefix=True caches what the particles share, and with minibatches='own' "
                    "they share no batch: leave out one of the two."
                )
            return
        if outside := self.posterior.trained_outside():
            if settings.cache_prefix is True:
                raise BellaError(
                    f"Parameters of the base train ({', '.join(list(outside)[:3])}), so what comes "
                    "before the particles cannot be cached: pass cache_prefix=False, or freeze "
                    "them."
                )
            return

        def kept(data: Any) -> Any:
            with self.precision.autocast():
                return cached(
                    self.posterior,
                    data,
                    settings.cache_prefix,
                    limit=settings.cache_bytes,
                    disk_limit=settings.cache_disk_bytes,
                    device=self.device,
                    progress=bar,
                )

        self.posterior.train()  # a prefix with dropout shows itself only in training mode
        self.train = kept(self.train)
        if self.validation is not None:
            self.validation.data = kept(self.validation.data)

    def run_epoch(self, epoch: int, bar: Progress, task: Any) -> dict[str, float]:
        """One pass over the data."""
        settings = self.settings
        self.posterior.train()
        batches: Iterable[Any] = self.train
        if settings.minibatches == "own":
            batches = own_batches(self.train, self.posterior.particles)
        gone, position, labels = self.position.steps, self.position, ""
        for number, group in enumerate(grouped(batches, settings.accumulate, self.batches), 1):
            if self.folder is not None:
                labels = labels_after(labels, group)
            if number <= gone:  # of a run that goes on in the middle of the epoch
                if number == gone:
                    self.go_on_from(epoch, labels)
                continue
            with self.stops.held():
                loss = self.update(group)
                drawn = None if self.folder is None else Drawn.now(self.device)
                position.add(loss, labels, drawn)
                bar.advance(task)
                if self.step.number % self.log_every == 0 and number < self.steps_per_epoch:
                    said = self.log(epoch)
                    bar.update(task, description=describe(said | self.validated, settings.epochs))
                    self.watchers(said)
            every = settings.checkpoint_every
            if every and self.step.number % every == 0 and number < self.steps_per_epoch:
                check_particles(self.posterior, f"by step {self.step.number}")
                with self.stops.held():
                    self.save_checkpoint(epoch, self.record)
        if position.skipped and not position.count:
            raise DivergedError(f"Nothing was finite in all steps of epoch {epoch + 1}")
        if not position.count:
            raise BellaError(
                "Nothing in the training data counts: all labels are -100 (numbers: NaN), or all "
                "weights 0; check collate_fn."
            )
        last = self.log(epoch)  # watchers hear it with the validation's figures
        return {
            "epoch": epoch + 1,
            "loss": position.mean,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **(self.move.log or position.log),
            **{name: value for name, value in last.items() if name in PAIRS},
            **({"skipped_steps": position.skipped} if settings.on_nonfinite == "skip" else {}),
        }

    def log(self, epoch: int) -> dict[str, float]:
        """The figures of this moment, which become the last row of the trace."""
        if self.trace and self.trace[-1]["step"] == self.step.number:
            del self.trace[-1]  # an epoch ended before its loader had said, or was stopped there
        row = {
            "step": self.step.number,
            "epoch": epoch + 1,
            "loss": self.position.mean,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **(self.move.log or self.position.log),
            **self.collapse.look(self.move.distances(), self.trace),
        }
        self.trace.append(row)
        return row

    def update(self, group: list[Any]) -> Loss | None:
        """One step, from one or more batches; ``None`` where it was left out."""
        batches: list[Batch] = [
            (*split(batch, self.posterior.network), weights_of(batch)) for batch in group
        ]
        for _, kwargs, *_ in batches:
            check_names(self.posterior.network, kwargs)
        left_out = self.step.skipped
        try:
            loss = self.step(batches)
        except DivergedError:
            check_finite([examples_of(batch) for batch in group], "The training inputs")
            raise
        if self.step.number == 1:
            begin(self.schedule)
        else:
            self.schedule.step()
        return loss if self.step.skipped == left_out else None

    def kl_weight(self, step: int) -> float:
        """The factor on the divergence, phased in."""
        return self.settings.kl_weight * kl_weight(
            step, steps_per_epoch=self.steps_per_epoch, epochs=self.settings.kl_warmup
        )

    # ------------------------------------------------------------ the best epoch

    def keep(self, epoch: int, figures: dict[str, float]) -> None:
        """Remember the particles of the best epoch so far, or where none is best of the last."""
        if self.settings.keep == "last" or "validation_nll" not in figures:
            self.kept.keep(epoch + 1)
        else:
            self.kept.keep_best(epoch, figures["validation_nll"])

    def should_stop(self, epoch: int) -> bool:
        """Whether ``patience`` epochs brought nothing better."""
        patience, best = self.settings.patience, self.kept.best_epoch
        return patience is not None and best is not None and epoch + 1 - best > patience

    # ------------------------------------------------------------ stopping and going on

    def begin_writing(self) -> None:
        """Before files of this run are written; before the first, take away what another left.

        Raises:
            BellaError: the folder was moved or removed.
        """
        if self.in_place is not None:
            self.in_place()
        if self.writes or self.folder is None:
            return
        if not self.resumed:
            forget(self.folder)
        if self.before_save is not None:
            self.before_save()
        self.writes = True

    def save_checkpoint(self, epoch: int, record: Record) -> None:
        """Keep what the next step depends on, and particles that can be used if there is none.

        Args:
            epoch: how many are done; where the run stands after them is its position.
            record: of the run.
        """
        record.trace = self.trace
        record.within = self.position.steps
        record.particles_per_pass = self.gradients.at_once
        record.seconds = time.perf_counter() - self.begun
        if self.folder is None:
            return
        self.position.log = self.move.log or self.position.log
        self.position.apart = self.world.everyone(self.gradients.apart.states)
        with self.whole():
            if not self.world.leads:
                return
            self.begin_writing()
            # In the middle of an epoch the last one's stay; before there is one, as they are now.
            if self.kept.best_epoch in (None, epoch) if not record.within else not epoch:
                self.posterior.save(self.folder)
            state = {
                "identity": self.identity,
                "finished": epoch == self.settings.epochs or self.should_stop(epoch),
                "epoch": epoch,
                **self.state.take(),
                "kernel": self.kernel,
                "precision": {"name": self.precision.name, "agreement": self.agreement},
                "position": self.position.state() if record.within else None,
                "finite": self.kept.finite if record.within else None,
                "history": record.history,
                "trace": self.trace,
                "seconds": record.seconds,
            }
            write_checkpoint(self.folder, state, keep=self.settings.keep_checkpoints)
            record.write()

    def save_stopped(self, epoch: int) -> None:
        """At a stop in the middle of an epoch: keep its steps, and say how to go on.

        Not where a run that began anew would take the place of one that got further.
        """
        folder, steps = self.folder, self.position.steps
        begins = not (self.writes or self.resumed)
        if self.stops.torn or not steps or folder is None or (begins and holds_run(folder)):
            return
        try:
            check_particles(self.posterior, "at the stop")
        except DivergedError:
            return
        with self.stops.held():
            self.save_checkpoint(epoch, self.record)
        self.stops.tell(
            f"stopped in epoch {epoch + 1} after {steps} of its {self.steps_per_epoch} steps, "
            f"which {folder} holds: the same call goes on from there."
        )

    def go_on_from(self, epoch: int, labels: str) -> None:
        """The batches before are passed over: draw random numbers as the stopped run did."""
        position, apart = self.position, self.gradients.apart
        position.check_order(labels)
        if position.drawn is not None:
            position.drawn.go_on(self.device)
        states = position.apart
        if self.world.size > 1 and len(states) == self.world.size:
            apart.states = states[self.world.rank]
        elif self.world.size > 1:  # another number of processes: draws of their own
            apart.begin(epoch_seed(self.settings.seed, epoch) + position.steps)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block every process has what all of them have, to be written or read."""
        with self.division.whole(self.optimizer, [self.kept.values]):
            yield
        self.kept.change(self.division.own(self.kept.values))

    def load_checkpoint(self, record: Record) -> int:
        """Continue from the folder's checkpoint, if it has one; returns the first epoch to run."""
        if self.folder is None:
            return 0
        state = None
        if self.world.leads:
            # What is told to other processes is read to where they can all have it.
            place = self.device if self.world.size == 1 else torch.device("cpu")
            state = read_checkpoint(self.folder, self.identity, place)
        state = self.world.first(state)
        if state is None:
            return 0
        self.resumed = True
        with self.whole():
            self.position = self.state.load(state, str(self.folder))
        self.kernel = state.get("kernel", DEFAULT)  # earlier versions knew no other
        kept = state.get("precision", {"name": self.precision.name, "agreement": None})
        self.precision.become(kept["name"])
        self.agreement = kept["agreement"]
        record.particles_per_pass = self.gradients.at_once
        record.history, record.seconds = state["history"], state["seconds"]
        record.trace = self.trace = state["trace"]
        return state["epoch"]


def place_of(posterior: Posterior, wanted: str | None = None) -> torch.device:
    """Where training runs: on the device that is wanted, else where CUDA is available there, else
    where the posterior is."""
    if wanted is not None:
        return device_named(wanted)
    device = next(posterior.parameters()).device
    if torch.cuda.is_available() and device.type != "cuda":
        return torch.device("cuda", local_rank(torch.cuda.current_device()))
    return device
