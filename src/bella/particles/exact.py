"""Full float32 while something is proven.

GPUs multiply float32 in TF32 where they are let, which has ten bits, and PyTorch lets convolutions
do so unasked. Two ways to compute the same then differ by a thousandth, and nothing could be told
from rounding. So what compares passes runs them in full float32; the passes of training and
prediction are multiplied as the caller has it.

The switches belong to the process: blocks are counted, the first that opens sets them and the last
that closes puts back what was there, whichever thread that is in.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SWITCHES = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn,
)
"""What holds an ``fp32_precision`` of CUDA."""

_lock = threading.Lock()
_open = 0
_before: list[str] = []


@contextmanager
def exactly(device: torch.device | str) -> Iterator[None]:
    """Multiply and convolve in full float32 inside the block, where the device may do otherwise."""
    if torch.device(device).type != "cuda":
        yield
        return
    global _open
    with _lock:
        if not _open:
            _before[:] = [switch.fp32_precision for switch in SWITCHES]
            _set(["ieee"] * len(SWITCHES))
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                _set(_before)


def _set(values: list[str]) -> None:
    for switch, value in zip(SWITCHES, values, strict=True):
        switch.fp32_precision = value
