"""Peak memory of a piece of work, each time in a fresh process.

On a CPU it is what the process grows by (Linux): the libraries are loaded before, so that tensors
are what is counted. glibc keeps what was freed for later; with the setting below every tensor of
64 KiB and more is a mapping of its own that goes back at once, and the size of the process is what
is in use. On a GPU it is what PyTorch's allocator handed out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def peak(build: Callable[..., Callable[[], object]], *arguments: Any, warmup: int = 1) -> int:
    """Bytes at the highest point of ``build(*arguments)()``, with what ``build`` made.

    Args:
        build: makes the work; a function of a module, so that the other process finds it.
        arguments: its arguments.
        warmup: calls before the one that is measured: what they leave, an optimiser's moments say,
            counts.
    """
    before = {name: os.environ.get(name) for name in MALLOC}
    os.environ |= MALLOC
    try:
        return fresh(measure, build, arguments, warmup)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a process of its own, whose memory is then free again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def measure(build: Callable[..., Callable[[], object]], arguments: tuple, warmup: int) -> int:
    """What `peak` runs in the fresh process."""
    import peft  # noqa: F401  (libraries are no part of the figure)
    import transformers  # noqa: F401

    torch.manual_seed(0)
    torch.randn(64, 64, requires_grad=True).square().sum().backward()
    empty = status("VmRSS")
    work = build(*arguments)
    for _ in range(warmup):
        work()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    work()
    return status("VmHWM") - empty


def status(field: str) -> int:
    """A figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def megabytes(count: float) -> str:
    """For tables."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
