"""Paired timings: alternatives take turns in one process, and ratios are taken within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from bella.console import progress_bar

Seconds = list[float]


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    wait()
    begun = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begun


def paired(
    title: str, alternatives: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, Seconds]:
    """Seconds of each alternative in each round; they run in turn, every round in other order."""
    names = list(alternatives)
    seconds: dict[str, Seconds] = {name: [] for name in names}
    with progress_bar() as bar:
        task = bar.add_task(title, total=(warmup + rounds) * len(names))
        for number in range(-warmup, rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                bar.update(task, description=f"{title}: {name}")
                took = timed(alternatives[name])
                if number >= 0:
                    seconds[name].append(took)
                bar.advance(task)
    return seconds


def ratios(a: Seconds, b: Seconds) -> Seconds:
    """The rounds' ratios a / b."""
    return [x / y for x, y in zip(a, b, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and range."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


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
