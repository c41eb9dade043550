"""Files that are written whole or not at all, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bella.errors import BellaError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path`` and move it there, so that no half-written file stays.

    What a process that was killed has left of the same file is taken away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _take_leftovers_away(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _take_leftovers_away(path: Path) -> None:
    begin = f".{path.name}."
    for other in path.parent.iterdir():
        owner = other.name.removeprefix(begin)
        if other.name.startswith(begin) and owner.isdecimal() and not _runs(int(owner)):
            other.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether there is such a process, as far as can be asked: elsewhere signal 0 ends it."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole; NaN becomes null."""
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        BellaError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BellaError(f"{path.parent} holds no {path.name}: is it a run folder?") from None
    except json.JSONDecodeError as error:
        raise BellaError(f"{path} is damaged ({error}): run it again.") from None


def plain(value: Any) -> Any:
    """JSON values: tensors and paths turned plain, numbers that JSON lacks turned to null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
