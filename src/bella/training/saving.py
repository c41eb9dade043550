"""What of a run is saved, and when: its folder holds at any time what can be used and gone on from.

After each epoch, within one where it is asked for or the run is stopped, and at the end: the
checkpoint (`bella.training.checkpoint`), the particles that are best by then, and the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bella.parallel.division import Division
from bella.parallel.ranks import Ranks
from bella.training.checkpoint import forget, holds_run, read_checkpoint, write_checkpoint
from bella.training.checks import DivergedError, check_particles
from bella.training.multiplying import Multiplying
from bella.training.record import Record
from bella.training.state import State
from bella.training.stops import Stops


@dataclass
class Saving:
    """One run's folder as it is written, and read by the run that goes on.

    Args:
        record: of the run, with its folder; without one nothing is written.
        state: what changes as it trains.
        multiplying: in what it computes.
        identity: what makes two runs the same.
        division: of the particles among processes.
        world: the processes; the first of them writes.
        stops: Ctrl-C and SIGTERM.
        keep: how many checkpoints stay.
        in_place: refuses a folder that was moved meanwhile.
        before_save: called before the first of the files is written.

    Attributes:
        resumed: whether the run goes on from a checkpoint.
        writes: whether the folder is this run's by now.
        begun: when the run would have begun, had it never been stopped.
    """

    record: Record
    state: State
    multiplying: Multiplying
    identity: dict[str, Any]
    division: Division
    world: Ranks
    stops: Stops
    keep: int = 1
    in_place: Callable[[], None] | None = None
    before_save: Callable[[], None] | None = None
    resumed: bool = False
    writes: bool = False
    begun: float = 0.0

    def start_clock(self) -> None:
        """The run's seconds count from here, after those of the run that was stopped."""
        self.begun = time.perf_counter() - self.record.seconds

    def stop_clock(self) -> None:
        """So many seconds it took so far."""
        self.record.seconds = time.perf_counter() - self.begun

    def save(self, epoch: int, *, finished: bool = False) -> None:
        """Keep what the next step depends on, and particles that can be used if there is none.

        Args:
            epoch: how many are done; where the run stands after them is its position.
            finished: whether there is no epoch after them.
        """
        record, step, position = self.record, self.state.step, self.state.position
        record.within = position.steps
        record.particles_per_pass = step.gradients.at_once
        self.stop_clock()
        if record.folder is None:
            return
        position.log = step.move.log or position.log
        position.apart = self.world.everyone(step.gradients.apart.states)
        with self._whole():
            if not self.world.leads:
                return
            self._begin_writing(record.folder)
            # In the middle of an epoch the last one's stay; before there is one, as they are now.
            best = self.state.kept.best_epoch
            if best in (None, epoch) if not record.within else not epoch:
                step.posterior.save(record.folder)
            state = {
                "identity": self.identity,
                "finished": finished,
                "epoch": epoch,
                **self.state.take(),
                **self.multiplying.state(),
                "history": record.history,
                "trace": record.trace,
                "seconds": record.seconds,
            }
            write_checkpoint(record.folder, state, keep=self.keep)
            record.write()

    def save_stopped(self, epoch: int) -> None:
        """At a stop in the middle of an epoch: keep its steps, and say how to go on.

        Not where a run that began anew would take the place of one that got further.
        """
        folder, steps = self.record.folder, self.state.position.steps
        begins = not (self.writes or self.resumed)
        if self.stops.torn or not steps or folder is None or (begins and holds_run(folder)):
            return
        try:
            check_particles(self.state.step.posterior, "at the stop")
        except DivergedError:
            return
        with self.stops.held():
            self.save(epoch)
        self.stops.tell(
            f"stopped in epoch {epoch + 1} after {steps} of its {self.state.steps_per_epoch} "
            f"steps, which {folder} holds: the same call goes on from there."
        )

    def load(self) -> int:
        """Continue from the folder's checkpoint, if it has one; returns the first epoch to run."""
        record = self.record
        if record.folder is None:
            return 0
        state = None
        if self.world.leads:
            # What is told to other processes is read to where they can all have it.
            alone = self.world.size == 1
            place = self.multiplying.device if alone else torch.device("cpu")
            state = read_checkpoint(record.folder, self.identity, place)
        state = self.world.first(state)
        if state is None:
            return 0
        self.resumed = True
        with self._whole():
            self.state.load(state, str(record.folder))
        self.multiplying.load(state)
        record.particles_per_pass = self.state.step.gradients.at_once
        record.history[:], record.trace[:] = state["history"], state["trace"]
        record.seconds = state["seconds"]
        return state["epoch"]

    def finish(self) -> None:
        """Write down the particles as they are now."""
        record, posterior = self.record, self.state.step.posterior
        record.best_epoch = self.state.kept.best_epoch or len(record.history)
        posterior.eval()
        if record.folder is not None and self.world.leads:
            self._begin_writing(record.folder)
            posterior.save(record.folder)
            record.write()

    def _begin_writing(self, folder: Path) -> None:
        """Before files of this run are written; before the first, take away what another left.

        Raises:
            BellaError: the folder was moved or removed.
        """
        if self.in_place is not None:
            self.in_place()
        if self.writes:
            return
        if not self.resumed:
            forget(folder)
        if self.before_save is not None:
            self.before_save()
        self.writes = True

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Inside the block every process has what all of them have, to be written or read."""
        kept = self.state.kept
        with self.division.whole(self.state.step.optimizer, [kept.values]):
            yield
        kept.change(self.division.own(kept.values))
