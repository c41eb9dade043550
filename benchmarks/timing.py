"""Paired timings: alternatives take turns in one process, and ratios are taken within a round.

A machine that slows down slows a whole round, and the round's ratio stays. Rounds are repeated
until the median ratio is known well enough, so a noisy machine takes longer and does not say
something else; where a limit is reached before, the interval beside the figure is wide.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from bella.console import progress_bar

Seconds = list[float]
Clock = Callable[[], float]

LEVEL = 0.95
"""Of the interval that holds a median."""


@dataclass(frozen=True)
class Until:
    """When rounds end: all intervals are narrow enough, or a limit is reached.

    Looking after every round and ending at the first narrow interval makes it hold the median a
    little less often than `LEVEL` says.

    Attributes:
        width: of the interval of each median ratio, relative to the median.
        most: rounds.
        seconds: a round begins only if it should be over by then; the first one always does.
    """

    width: float = 0.06
    most: int = 60
    seconds: float = math.inf

    def reached(self, found: Sequence[Seconds], took: float) -> bool:
        """Whether it is enough.

        Args:
            found: the ratios of the rounds so far, for each pair.
            took: seconds of these rounds.
        """
        rounds = len(found[0])
        if rounds >= self.most or took * (rounds + 1) / rounds > self.seconds:
            return True
        return all(relative_width(ratios) <= self.width for ratios in found)


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    wait()
    begun = clock()
    call()
    wait()
    return clock() - begun


def paired(
    title: str,
    alternatives: Mapping[str, Callable[[], object]],
    until: Until,
    *,
    beside: Mapping[str, Callable[[], object]] | None = None,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, Seconds]:
    """Seconds of each alternative in each round; they run in turn, every round in other order.

    Args:
        title: of the progress bar.
        alternatives: by their names; the ratio of each to the first is what is to be known.
        until: when that is enough.
        beside: what runs in the same rounds without being compared, such as a `Product`.
        warmup: rounds that are not counted.
        clock: gives seconds.
    """
    calls = {**alternatives, **(beside or {})}
    names = list(calls)
    first, *others = list(alternatives)
    seconds: dict[str, Seconds] = {name: [] for name in names}
    number, took = -warmup, 0.0
    with progress_bar() as bar:
        task = bar.add_task(title, total=None)
        while True:
            turn = number % len(names)
            begun = clock()
            for name in names[turn:] + names[:turn]:
                bar.update(task, description=f"{title}, round {max(number + 1, 0)}: {name}")
                one = timed(calls[name], clock)
                if number >= 0:
                    seconds[name].append(one)
                bar.advance(task)
            number += 1
            if number <= 0:
                continue
            took += clock() - begun
            known = [ratios(seconds[name], seconds[first]) for name in others or [first]]
            if until.reached(known, took):
                return seconds


def ratios(a: Seconds, b: Seconds) -> Seconds:
    """The rounds' ratios a / b."""
    return [x / y for x, y in zip(a, b, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Two of the values between which the median lies with probability `LEVEL`, whatever they are
    distributed like; ``None`` for fewer than six, of which no two do.

    With n values the k-th smallest is above the median with probability P(Bin(n, 1/2) < k).
    """
    count = len(values)
    below, k = 0.0, 0
    while (below := below + math.comb(count, k) / 2**count) <= (1 - LEVEL) / 2:
        k += 1
    if not k:
        return None
    ordered = sorted(values)
    return ordered[k - 1], ordered[count - k]


def relative_width(values: Sequence[float]) -> float:
    """Of the median's interval, relative to the median; infinite where there is none."""
    found = interval(values)
    return math.inf if found is None else (found[1] - found[0]) / statistics.median(values)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and its interval; of fewer than six values their range, and how many there are."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    low, high = interval(values) or (min(values), max(values))
    few = "" if interval(values) else f", range of {len(values)}"
    return f"{middle} ({low:.{digits}f} to {high:.{digits}f}{few})"


class Product:
    """A matrix product, to be timed in turn with what it is compared to.

    Args:
        rows: of the left factor.
        inner: its columns.
        columns: of the right factor.
        device: where.
        dtype: in which precision.
    """

    def __init__(self, rows: int, inner: int, columns: int, device: str, dtype: torch.dtype):
        self.a = torch.randn(rows, inner, device=device, dtype=dtype)
        self.b = torch.randn(inner, columns, device=device, dtype=dtype)
        self.operations = 2 * rows * inner * columns
        self.best = float("inf")

    def __call__(self) -> None:
        """A few products; the best of all so far is kept, as the rate is to be a bound."""
        for _ in range(4):
            self.best = min(self.best, timed(lambda: torch.mm(self.a, self.b)))

    @property
    def rate(self) -> float:
        """Operations a second."""
        if self.best == float("inf"):
            self()
        return self.operations / self.best


def square(device: str, dtype: torch.dtype) -> Product:
    """The product whose rate stands for the machine; larger where that is a GPU."""
    size = 1536 if device == "cpu" else 8192
    return Product(size, size, size, device, dtype)
