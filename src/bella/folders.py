"""One run at a time in a folder, and the folder of what is made once for all runs.

A folder is held by a lock of the system on the folder itself, which is gone with the process that
held it, however that ended. A file ``.lock`` says who holds it; where the system has no such locks
(some network drives, Windows) that file decides: it counts as long as the process that wrote it
runs. Reading asks for neither.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bella.errors import BellaError
from bella.files import read_json, runs, write_json

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()
"""Open handles of folders that this process holds."""

LOCK = ".lock"
"""The file that says who holds a folder."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder.

    Attributes:
        pid: its number, which another process has some day.
        machine: where that number counts.
        begun: when it began, by which it is told from a later process of its number: the machine's
            start and clock ticks since then; empty where the system does not say.
    """

    pid: int
    machine: str
    begun: str

    @classmethod
    def of(cls, pid: int) -> Holder:
        """A process of this machine."""
        return cls(pid, platform.node(), _begun(pid))

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """Who wrote a file; ``None`` where nothing is there that `write` made."""
        with suppress(BellaError, OSError, TypeError, KeyError):
            found = read_json(path)
            holder = cls(found["pid"], found["machine"], found["begun"])
            if type(holder.pid) is int and holder.pid > 0:
                return holder
        return None

    def write(self, path: Path) -> None:
        """Say that this one holds the folder."""
        write_json(path, asdict(self))

    @property
    def elsewhere(self) -> bool:
        """Whether it is on another machine, which cannot be asked."""
        return self.machine != platform.node()

    @property
    def lives(self) -> bool:
        """Whether it runs, as far as can be told from here."""
        if self.elsewhere:
            return True
        return runs(self.pid) and self.begun in ("", _begun(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine}"


def _begun(pid: int) -> str:
    """When a process began, as Linux says it; empty elsewhere, or where there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name in brackets may hold anything; the start is the 22nd field.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError):
        return ""
    return f"{boot} {ticks}"


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
        folder: to hold.

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
    me = Holder.of(os.getpid())
    with suppress(BellaError):  # who cannot write there is told so at the first file
        me.write(folder / LOCK)
    try:
        yield lambda: _check_in_place(folder, handle)
    finally:
        _say_free(folder, handle, me)
        if handle is not None:
            _held.discard(handle)
            os.close(handle)
        for place in missing:
            with suppress(OSError):  # it holds something by now
                place.rmdir()


def _locked(folder: Path) -> int | None:
    """An open handle of the folder, with the lock if the system has it.

    Raises:
        BellaError: another run has the lock, or the system has none and the file says so.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        _refuse_living(folder)
        return None
    try:
        if fcntl is None:
            raise OSError
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise _another(folder, Holder.read(folder / LOCK)) from None
    except OSError:
        try:
            _refuse_living(folder)
        except BellaError:
            os.close(handle)
            raise
    _held.add(handle)
    return handle


def _refuse_living(folder: Path) -> None:
    holder = Holder.read(folder / LOCK)
    if holder is not None and holder.lives:
        raise _another(folder, holder)


def _another(folder: Path, holder: Holder | None) -> BellaError:
    who = "" if holder is None else f" ({holder})"
    way = ""
    if holder is not None and holder.elsewhere:
        way = f"; if that process has ended, remove {folder / LOCK}"
    return BellaError(
        f"Another run is writing to {folder}{who}: wait until it ends, or name another folder{way}."
    )


def _say_free(folder: Path, handle: int | None, me: Holder) -> None:
    """Take the file away, wherever the folder is by now; another's stays."""
    if os.getpid() != me.pid:  # a forked process that came out of the block too
        return
    with suppress(OSError):
        if handle is not None and os.unlink in os.supports_dir_fd:
            os.unlink(LOCK, dir_fd=handle)
        elif Holder.read(folder / LOCK) == me:
            os.unlink(folder / LOCK)


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
