"""Requests that come at once are answered together: a queue, and threads that empty it.

A pass takes the request that has waited longest and those behind it that can be answered with it,
in their order, as long as they fit. It begins when it is full or its first request has waited long
enough. While a pass runs the next one fills up, so that nobody waits for the sake of waiting where
much is asked.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bella.errors import BellaError

Answer = Callable[[Sequence[Any], Any], Sequence[Any]]
"""From examples of several requests, and what these have in common, to one answer an example."""


class FullError(BellaError):
    """There are more examples in the queue than it holds."""


class LateError(BellaError):
    """The answer would come, or came, too late."""


class ClosedError(BellaError):
    """The service is being stopped and accepts nothing any more."""


@dataclass
class Job:
    """One request's examples.

    Attributes:
        items: the examples.
        key: what those have in common that can be answered together.
        deadline: when nobody waits any more, on the monotonic clock.
        arrived: when it came.
        done: becomes the answers, one an example.
    """

    items: Sequence[Any]
    key: Hashable
    deadline: float
    arrived: float
    done: Future = field(default_factory=Future)


class Batcher:
    """A queue in front of passes.

    Args:
        answer: a pass. It may raise: then each request of it is tried alone, so that one that
            cannot be answered fails by itself.
        batch: examples in a pass.
        wait: seconds that the first request of a pass waits for others.
        queue: examples that are accepted and not yet answered.
        passes: threads that run them.
        heard: told of every pass: how many examples, and how many seconds it took.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        batch: int = 32,
        wait: float = 0.005,
        queue: int = 256,
        passes: int = 1,
        heard: Callable[[int, float], object] = lambda count, seconds: None,
    ):
        self.answer = answer
        self.batch = batch
        self.wait = wait
        self.queue = queue
        self.heard = heard
        self.held = 0
        self._closed = False
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"pass-{number}", daemon=True)
            for number in range(passes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, items: Sequence[Any], key: Hashable = None, seconds: float = 60.0) -> Future:
        """Queue a request's examples.

        Args:
            items: at least one, and no more than a pass takes.
            key: requests of equal keys may be answered in one pass.
            seconds: after which nobody waits any more.

        Returns:
            A future of the answers, one an example. Cancelled before its pass it is left out.

        Raises:
            FullError: there is no room for them.
            ClosedError: nothing is accepted any more.
        """
        now = time.monotonic()
        job = Job(items, key, now + seconds, now)
        with self._changed:
            if self._closed:
                raise ClosedError("The service is being stopped: ask again in a while.")
            if self.held + len(items) > self.queue:
                raise FullError(
                    f"{self.held} examples are waiting, of {self.queue} that the queue holds: ask "
                    "again in a second."
                )
            self.held += len(items)
            job.done.add_done_callback(lambda _: self._let_go(len(items)))
            self._waiting.append(job)
            self._changed.notify()
        return job.done

    def close(self, seconds: float | None = None) -> None:
        """Accept nothing more, answer what was accepted, and end the threads.

        Args:
            seconds: to wait for them; ``None`` waits until all is answered.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether requests are accepted and answered."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    # ------------------------------------------------------------ inside

    def _let_go(self, count: int) -> None:
        with self._changed:
            self.held -= count

    def _run(self) -> None:
        while jobs := self._next():
            begun = time.perf_counter()
            self._answer(jobs)
            self.heard(sum(len(job.items) for job in jobs), time.perf_counter() - begun)

    def _next(self) -> list[Job]:
        """The requests of the next pass; none when the queue is closed and empty."""
        with self._changed:
            while True:
                self._forget_late()
                if self._waiting:
                    first = self._waiting[0]
                    together, full = self._together(first)
                    left = first.arrived + self.wait - time.monotonic()
                    if full or left <= 0 or self._closed:
                        taken = {id(job) for job in together}
                        self._waiting = deque(j for j in self._waiting if id(j) not in taken)
                        began = [j for j in together if j.done.set_running_or_notify_cancel()]
                        if self._waiting:
                            self._changed.notify()  # for another thread, which may have slept
                        if began:
                            return began
                        continue
                    self._changed.wait(left)
                elif self._closed:
                    return []
                else:
                    self._changed.wait()

    def _together(self, first: Job) -> tuple[list[Job], bool]:
        """Those that are answered with the first one, and whether no further one would fit."""
        taken: list[Job] = []
        count = 0
        for job in self._waiting:
            if job.key != first.key:
                continue
            if taken and count + len(job.items) > self.batch:
                return taken, True
            taken.append(job)
            count += len(job.items)
        return taken, count >= self.batch

    def _forget_late(self) -> None:
        """Leave out those that nobody waits for."""
        now = time.monotonic()
        kept: deque[Job] = deque()
        gone: list[Job] = []
        for job in self._waiting:
            late = job.deadline <= now
            (gone if late or job.done.cancelled() else kept).append(job)
        self._waiting = kept
        for job in gone:
            if job.done.set_running_or_notify_cancel():
                job.done.set_exception(LateError("There was no pass in time: ask again later."))

    def _answer(self, jobs: Sequence[Job]) -> None:
        items = [item for job in jobs for item in job.items]
        try:
            answers = self.answer(items, jobs[0].key)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
            return
        begin = 0
        for job in jobs:
            job.done.set_result(answers[begin : begin + len(job.items)])
            begin += len(job.items)
