"""A small run in a process that is killed: at any moment, or as it touches a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from fit_cases import Blocks, fit, make

OPTIONS: dict[str, Any] = {"epochs": 2, "checkpoint_every": 2, "keep_checkpoints": 2}


def train(folder: str, crash: int | None = None) -> int:
    """Begin or continue the run; returns how often it touched a file.

    Args:
        folder: of the run.
        crash: kill this process as it is about to touch a file for the so manieth time.
    """
    touched = 0

    def watched(original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal touched
            touched += 1
            if touched == crash:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "link", "unlink", "chmod"):
        setattr(os, name, watched(getattr(os, name)))
    fit(make(network=Blocks(0.3)), folder=folder, **OPTIONS)
    return touched
