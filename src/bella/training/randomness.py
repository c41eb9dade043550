"""One seed for all random numbers of a run, and none of the caller's used up."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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


class Drawn(NamedTuple):
    """How far the generators of Python, numpy and torch have been drawn from.

    Attributes:
        python: of ``random``.
        numpy: of numpy's global generator.
        devices: of torch: of the CPU and, where training runs on one, of the GPU.
    """

    python: tuple
    numpy: tuple
    devices: list[Tensor]

    @classmethod
    def now(cls, device: torch.device) -> Drawn:
        """As they are."""
        used = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        numbers = np.random.get_state(legacy=True)
        assert isinstance(numbers, tuple)
        return cls(random.getstate(), numbers, [torch.get_rng_state(), *used])

    def go_on(self, device: torch.device) -> None:
        """Draw from there. A GPU that was not used then stays as it is."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.devices[0])
        if device.type == "cuda" and len(self.devices) > 1:
            torch.cuda.set_rng_state(self.devices[1], device)

    def state(self) -> dict[str, Any]:
        """As tensors and JSON values: a part of a checkpoint."""
        version, words, gauss = self.python
        kind, keys, *rest = self.numpy
        return {
            "python": [version, torch.tensor(words), gauss],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": [state.cpu() for state in self.devices],
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> Drawn:
        """What `state` made.

        Raises:
            ValueError: it is not what that makes.
        """
        version, words, gauss = state["python"]
        kind, keys, place, has_gauss, cached = state["numpy"]
        if kind != "MT19937" or keys.shape != (624,) or not 0 <= int(place) <= 624:
            raise ValueError("numpy's generator is none")  # which numpy itself would not notice
        found = cls(
            (version, tuple(words.tolist()), gauss),
            (kind, keys.cpu().numpy().astype(np.uint32), int(place), int(has_gauss), float(cached)),
            [value.cpu() for value in state["torch"]],
        )
        with own_randomness():
            found.go_on(torch.device("cpu"))
        return found


class Apart:
    """Random numbers of one process among several, beside those that all of them draw alike.

    All processes draw the order of the data from the process's own generators, in step. What a
    network throws dice for is another for other examples and particles, so that passes draw from
    here. One process draws all from the same generators.

    Args:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank = rank
        self.size = size
        self.states: list[Tensor] | None = None

    def begin(self, seed: int) -> None:
        """Begin anew from a seed."""
        if self.size > 1:
            common = self._states()
            torch.manual_seed((seed + 104_729 * (self.rank + 1)) % 2**63)
            self.states = self._states()
            self._set(common)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside the block torch draws from here."""
        if self.states is None:
            yield
            return
        common = self._states()
        self._set(self.states)
        try:
            yield
        finally:
            self.states = self._states()
            self._set(common)

    @staticmethod
    def _states() -> list[Tensor]:
        used = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
        return [torch.get_rng_state(), *used]

    @staticmethod
    def _set(states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state)


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators: data sets draw from any of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
