"""Whether a machine was quiet while something was measured: what others took of its processors.

The time that all processors were busy, or a hypervisor gave to another machine, less what this
process and its children took (Linux; elsewhere nothing is known, and the tables say that).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.05
"""From this share of the processors' time on, taken by others, a machine is called busy."""
LOOK = 1.0
"""Seconds of the look before a measurement."""


@dataclass(frozen=True)
class Moment:
    """Seconds since some start.

    Attributes:
        wall: by the clock.
        busy: of all processors together, whoever used them; ``None`` where that is not known.
        own: of this process and of those of its children that have ended.
    """

    wall: float
    busy: float | None
    own: float


def now() -> Moment:
    """The present one."""
    user, system, their_user, their_system, _ = os.times()
    own = user + system + their_user + their_system
    return Moment(time.perf_counter(), busy_seconds(), own)


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """The first line of Linux's /proc/stat, without idle time and waiting for disks."""
    try:
        user, nice, system, _, _, *interrupts = map(int, stat.read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return sum((user, nice, system, *interrupts)) / os.sysconf("SC_CLK_TCK")


def taken_by_others(before: Moment, after: Moment, processors: int) -> float | None:
    """The share of the processors' time between two moments."""
    if before.busy is None or after.busy is None or after.wall <= before.wall:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(1.0, max(0.0, others / (processors * (after.wall - before.wall))))


class Watch:
    """A look before a measurement, and one at its end.

    Args:
        look: what gives a `Moment`.
        sleep: waits so many seconds.
        processors: how many there are.
    """

    def __init__(
        self,
        look: Callable[[], Moment] = now,
        sleep: Callable[[float], object] = time.sleep,
        processors: int | None = None,
    ):
        self.look = look
        self.processors = processors or os.cpu_count() or 1
        first = look()
        sleep(LOOK)
        self.begun = look()
        self.before = taken_by_others(first, self.begun, self.processors)

    def during(self) -> float | None:
        """The others' share since the look before."""
        return taken_by_others(self.begun, self.look(), self.processors)

    def words(self) -> str:
        """For the text above a table."""
        before, during = self.before, self.during()
        if before is None or during is None:
            return "Who else used the machine meanwhile is not known."
        shares = f"{before:.1%} of the processors' time before and {during:.1%} while it ran"
        if max(before, during) < BUSY:
            return f"A quiet machine: others took {shares}."
        return f"**Made on a busy machine**: others took {shares}, so times are rough."
