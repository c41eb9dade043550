"""Several processes on this machine, over gloo, that run one of a test's functions.

They are forked from a server that has imported torch and bella once.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import bella

PLACES = (str(Path(bella.__file__).parents[1]), str(Path(__file__).parent))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launched(size: int, rank: int, port: int) -> dict[str, str]:
    """What a launcher says to a process."""
    return {
        "WORLD_SIZE": str(size),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _run(said: dict[str, str], module: str, function: str, folder: str, values: tuple) -> None:
    os.environ |= said
    place = Path(folder)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    try:
        found = getattr(sys.modules.get(module) or __import__(module), function)(*values)
    except BaseException:
        (place / f"error-{said['RANK']}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
    torch.save(found, place / f"found-{said['RANK']}")


def start(size: int, module: str, function: str, folder: Path, *values: Any) -> list[BaseProcess]:
    """So many processes that run a function of a module in tests/cases."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parallel_cases"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(PLACES)  # the server has no other path
    port = free_port()
    running = [
        context.Process(
            target=_run,
            args=(launched(size, rank, port), module, function, str(folder), values),
            daemon=True,
        )
        for rank in range(size)
    ]
    try:
        for process in running:
            process.start()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return running


def errors(folder: Path) -> dict[int, str]:
    """What went wrong, by the process's rank."""
    return {int(path.name[6:]): path.read_text() for path in folder.glob("error-*")}


def results(size: int, module: str, function: str, folder: Path, *values: Any) -> list:
    """What the function returns in each process."""
    running = start(size, module, function, folder, *values)
    for process in running:
        process.join(timeout=240)
    assert errors(folder) == {}, "\n".join(errors(folder).values())
    assert [process.exitcode for process in running] == [0] * size
    return [torch.load(folder / f"found-{rank}", weights_only=False) for rank in range(size)]
