"""`bella.fit`: train the particles of a posterior in one call.

Everything here can be had without it: a transport, any torch optimiser and an ordinary loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from bella.console import progress_bar
from bella.data.loaders import Data
from bella.errors import BellaError, Terminated
from bella.files import shortened
from bella.folders import held
from bella.host import versions
from bella.inputs import check_names, split, weights_of
from bella.parallel.division import Division
from bella.parallel.mesh import Mesh, mesh_of
from bella.parallel.ranks import joined
from bella.particles.recompute import recompute
from bella.posterior import Posterior
from bella.training.assembly import make_step
from bella.training.batches import epoch_seed, examples_of, warn_of_generators
from bella.training.checks import MEND, DivergedError, check_can_train, check_particles
from bella.training.feed import Feed
from bella.training.gradients import Batch, Loss
from bella.training.identity import identity_of
from bella.training.kept import Kept
from bella.training.multiplying import Multiplying
from bella.training.optimizer import MakeOptimizer, begin, make_schedule
from bella.training.position import Position, labels_after
from bella.training.randomness import Drawn, own_randomness, seed_all
from bella.training.record import Record, describe
from bella.training.saving import Saving
from bella.training.settings import Settings, checked
from bella.training.shares import check_can_share, checksum
from bella.training.state import State
from bella.training.stops import Stops, answered
from bella.training.trace import Trace
from bella.training.validation import Validation
from bella.training.watching import Watcher
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
        watch: Sequence[Watcher],
        settings: Settings,
        identity: Mapping[str, Any] | None,
        before_save: Callable[[], None] | None,
        in_place: Callable[[], None] | None,
        mesh: Mesh,
        stops: Stops,
    ):
        self.posterior, self.settings = posterior, settings
        self.mesh, self.stops = mesh, stops
        self.multiplying = Multiplying(posterior, settings, mesh.world)
        self.division = Division(posterior, mesh.particles)
        if settings.checkpoint:
            named = settings.checkpoint
            recompute(posterior, None if named is True else named)
        self.feed = Feed(train, validation, collate_fn, settings)
        self.steps = self.feed.steps_per_epoch * settings.epochs
        self.step = make_step(
            posterior,
            settings,
            self.feed,
            optimizer=optimizer,
            movers=movers,
            precision=self.multiplying.precision,
            mesh=mesh,
        )
        self.gradients = self.step.gradients
        self.schedule = make_schedule(self.step.optimizer, self.steps, settings.warmup)
        self.validation = (
            None
            if self.feed.validation is None
            else Validation(posterior, self.feed.validation, self.gradients, settings.likelihood)
        )
        self.trace = Trace(self.step, self.steps, watch)
        self.record = Record(
            settings.model_dump(),
            trace=self.trace.rows,
            folder=folder,
            versions=versions(self.multiplying.device),
        )
        self.kept = Kept(posterior, settings.keep, settings.patience)
        self.state = State(self.step, self.schedule, self.kept, self.feed.steps_per_epoch)
        self.saving = Saving(
            self.record,
            self.state,
            self.multiplying,
            self.named(movers, identity or {}) if folder is not None else {},
            self.division,
            mesh.world,
            stops,
            keep=settings.keep_checkpoints,
            in_place=in_place,
            before_save=before_save,
        )
        mesh.world.check_same((self.steps, self.saving.identity), "settings, network and data")

    def named(self, movers: Sequence[Mover], more: Mapping[str, Any]) -> dict[str, Any]:
        """What another run has to have in common with this one to continue it."""
        names = [type(mover).__name__ for mover in movers]
        with self.division.whole():
            return identity_of(
                self.posterior,
                train=self.feed.train,
                validation=self.feed.validation,
                optimizer=self.step.optimizer,
                settings=self.settings.model_dump(),
                more={**({"movers": names} if names else {}), **more},
            )

    def execute(self, bar: Progress, *, resume: bool) -> Record:
        """All epochs; returns the record."""
        first = self.saving.load() if resume else 0
        if self.saving.resumed:
            warn_of_generators(self.feed.train)
        else:
            self.multiplying.settle(self.feed.train, self.gradients.likelihood or "auto")
        self.record.precision = self.multiplying.facts()
        with self.multiplying.around() as kernel:
            self.record.float32 = kernel.facts()
            return self.run_epochs(first, bar)

    def run_epochs(self, first: int, bar: Progress) -> Record:
        """The epochs from ``first`` on."""
        settings, multiplying = self.settings, self.multiplying
        self.saving.start_clock()
        self.feed.share_prefix(self.posterior, multiplying.precision, multiplying.device, bar)
        if self.validation is not None:
            self.validation.data = self.feed.validation
            if first < settings.epochs:
                self.validation.check()
        task = bar.add_task("training", total=self.steps, completed=self.step.number)
        for epoch in range(first, settings.epochs):
            if self.kept.waited(epoch):
                break
            self.feed.begin(epoch)
            self.gradients.apart.begin(epoch_seed(settings.seed, epoch))
            try:
                figures = self.run_epoch(epoch, bar, task)
                check_particles(self.posterior, f"in epoch {epoch + 1}")
                self.mesh.data.check_same(checksum(self.posterior), "particles after an epoch")
                if self.validation is not None:
                    self.trace.validated = self.validation.run()
                    figures |= self.trace.validated
            except DivergedError as error:
                raise self.given_up(error) from error
            except (KeyboardInterrupt, Terminated):
                if self.stops.asked is not None:
                    self.saving.save_stopped(epoch)
                raise
            with self.stops.held():
                self.trace.end_epoch()
                self.kept.after(epoch, figures)
                self.record.history.append(figures)
                self.state.position = Position()
                done = epoch + 1
                over = done == settings.epochs or self.kept.waited(done)
                self.saving.save(done, finished=over)
                self.trace.tell()
            bar.update(task, description=describe(figures, settings.epochs))
        bar.remove_task(task)
        self.kept.restore()
        self.division.end()
        self.saving.stop_clock()
        self.saving.finish()
        return self.record

    def run_epoch(self, epoch: int, bar: Progress, task: Any) -> dict[str, float]:
        """One pass over the data; returns the epoch's figures."""
        settings, position, device = self.settings, self.state.position, self.multiplying.device
        steps, every = self.feed.steps_per_epoch, settings.checkpoint_every
        has_folder = self.record.folder is not None
        gone, labels = position.steps, ""
        self.posterior.train()
        for number, group in enumerate(self.feed.steps(self.posterior.particles), 1):
            if has_folder:
                labels = labels_after(labels, group)
            if number <= gone:  # of a run that goes on in the middle of the epoch
                if number == gone:
                    seed = epoch_seed(settings.seed, epoch)
                    position.go_on(labels, device, self.gradients.apart, seed)
                continue
            with self.stops.held():
                loss = self.update(group)
                position.add(loss, labels, Drawn.now(device) if has_folder else None)
                bar.advance(task)
                if self.trace.is_due and number < steps:
                    said = self.trace.log(epoch, position) | self.trace.validated
                    bar.update(task, description=describe(said, settings.epochs))
                    self.trace.tell()
            if every and self.step.number % every == 0 and number < steps:
                check_particles(self.posterior, f"by step {self.step.number}")
                with self.stops.held():
                    self.saving.save(epoch)
        if position.skipped and not position.count:
            raise DivergedError(f"Nothing was finite in all steps of epoch {epoch + 1}")
        if not position.count:
            raise BellaError(
                "Nothing in the training data counts: all labels are -100 (numbers: NaN), or all "
                "weights 0; check collate_fn."
            )
        figures = self.trace.log_epoch(epoch, position)
        if settings.on_nonfinite == "skip":
            figures["skipped_steps"] = position.skipped
        return figures

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

    def given_up(self, error: DivergedError) -> BellaError:
        """Put the best finite particles back, in the folder too, and say so."""
        epochs = self.kept.restore()
        self.division.end()
        if epochs:
            self.saving.finish()
        kept = f"those of epoch {epochs}" if epochs else "as they were before training"
        return BellaError(f"{error.what}: {MEND}; the particles are {kept}.")
