"""Paired timings: alternatives take turns in one process, and ratios are taken within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def paired(
    alternatives: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each alternative in each round; they run in turn, every round in other order."""
    names = list(alternatives)
    for name in names:
        for _ in range(warmup):
            alternatives[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            alternatives[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(a: list[float], b: list[float]) -> str:
    """Median of the rounds' ratios a / b, with their range."""
    values = [x / y for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(values):.3f} ({min(values):.2f} to {max(values):.2f})"


def gemm_rate(size: int = 1536, rounds: int = 12) -> float:
    """Floating-point operations a second of a float32 matrix product, the best of some rounds."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
