"""One seed for all random numbers of a run, and none of the caller's used up."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_TURN = threading.RLock()


@contextmanager
def own_randomness() -> Iterator[None]:
    """Python's, numpy's and torch's generators are afterwards as they were before the block.

    They belong to the process: two runs in threads of one process would take each other's numbers,
    so that one waits here until the other is done.
    """
    with _TURN:
        python, legacy = random.getstate(), np.random.get_state()
        devices = range(torch.accelerator.device_count())
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators: data sets draw from any of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
