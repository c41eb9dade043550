"""One run at a time in a folder, and the folder of what is made once for all runs.

A folder is held by a lock of the system on the folder itself: nothing is written for it, and it is
gone with the process that held it, however that ended. Reading does not ask for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bella.errors import BellaError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()
"""Open handles of folders that this process holds."""


def cache_folder() -> Path:
    """Where what is made once is kept: ``BELLA_CACHE``, else ``bella`` in the user's cache folder.

    Everything in it can be made again.
    """
    if own := os.environ.get("BELLA_CACHE"):
        return Path(own).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bella"


@contextmanager
def held(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder inside the block; it is made if missing, and taken away again if left empty.

    Args:
        folder: to hold. Where the system cannot lock it (some network drives, Windows) it is used
            without.

    Yields:
        A function that raises a `BellaError` if the folder is no longer where it was.

    Raises:
        BellaError: another run holds it, or it is no folder and cannot be made.
    """
    try:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise BellaError(
            f"{folder} is no folder, and something of that name is there: name another."
        ) from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise BellaError(f"{folder} cannot be made ({said}): name another folder.") from None
    handle = _locked(folder)
    try:
        yield lambda: _check_in_place(folder, handle)
    finally:
        if handle is not None:
            _held.discard(handle)
            os.close(handle)
        for place in missing:
            with suppress(OSError):  # it holds something by now
                place.rmdir()


def _locked(folder: Path) -> int | None:
    """An open handle of the folder, with the lock if the system has it.

    Raises:
        BellaError: another run has the lock.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None  # folders cannot be opened everywhere
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BellaError(
            f"Another run is writing to {folder}: wait until it ends, or name another folder."
        ) from None
    except OSError:
        pass
    _held.add(handle)
    return handle


def _check_in_place(folder: Path, handle: int | None) -> None:
    try:
        there = handle is None or os.path.samestat(os.fstat(handle), os.stat(folder))
    except OSError:
        there = False
    if not there:
        raise BellaError(
            f"{folder} was moved or removed while its run went on, which therefore stopped: where "
            "the folder is now it holds the run up to its last checkpoint, and can be continued."
        )


def _let_go() -> None:
    """In a forked process (a loader's worker, say): the lock is its parent's alone."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
