"""Ctrl-C and SIGTERM between two steps, where a run can be saved and go on to the same bits."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bella.errors import Terminated
from bella.host import terminate

KNOWN: dict[int, tuple[Any, ...]] = {
    signal.SIGINT: (signal.default_int_handler,),
    signal.SIGTERM: (signal.SIG_DFL, terminate),
}
"""Who is stood in for while a training goes on. Whoever answers a signal by himself (a cluster's
requeue, Lightning) keeps it."""


class Stops:
    """Stops that were asked for.

    Attributes:
        asked: the signal, where there was one.
        torn: whether a second one came inside a step, which was left at once: what is in memory is
            then of no moment that could be saved.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.torn = False
        self._held = False
        self._process = os.getpid()
        # The command has a sentence of its own.
        self._speaks = signal.getsignal(signal.SIGTERM) is not terminate

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal: at once, or when the block of `held` is done."""
        if os.getpid() != self._process:  # a loader's worker, which saves nothing
            self._held = False
        if self._held and self.asked is None:
            self.asked = number
            return
        self.torn = self._held
        self.asked = number
        self._raise()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The block is done to its end before a stop is answered; a second stop is not held."""
        before, self._held = self._held, True
        already = self.asked
        try:
            yield
        finally:
            self._held = before
        if self.asked is not None and already is None and not before:
            self._raise()

    def tell(self, sentence: str) -> None:
        """Print what a script's user reads at a stop."""
        if self._speaks:
            print(f"bella: {sentence}", file=sys.stderr)

    def _raise(self) -> None:
        if self.asked == signal.SIGTERM:
            raise Terminated
        raise KeyboardInterrupt


@contextmanager
def answered(wanted: bool = True) -> Iterator[Stops]:
    """Inside the block stops are held where a training asks for it.

    Args:
        wanted: whether there is anything to save. In another thread than the main one signals are
            not answered either.
    """
    stops = Stops()
    replaced: dict[int, Any] = {}
    if wanted and threading.current_thread() is threading.main_thread():
        for number, known in KNOWN.items():
            if signal.getsignal(number) in known:
                replaced[number] = signal.signal(number, stops)
    try:
        yield stops
    finally:
        for number, before in replaced.items():
            signal.signal(number, before)
