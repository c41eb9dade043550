"""Files that are written whole or not at all, read within bounds, and JSON that carries a checksum.

What is read may come from a stranger or from a failing disk: every reader here looks at the kind
and the size of a file before its content, and ends with one sentence.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import reprlib
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bella.errors import BellaError

LARGEST_TEXT = 2**26
"""Bytes that a file of JSON or CSV may have; those of real runs are a thousand times smaller."""

SEAL = "sha256"
"""The entry of a JSON mapping that holds the checksum of all its others."""


# ---------------------------------------------------------------- writing


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path`` and move it there, so that no half-written file stays.

    The content is on the disk before the name points to it, so that a power failure leaves either
    the old file or the new one. The mode follows the umask, whoever writes. What a process that was
    killed has left of the same file is taken away.

    Raises:
        BellaError: the disk is full, the place cannot be written, or ``path`` is no ordinary file.
            What stood there before is kept.
    """
    if "\0" in str(path):
        raise BellaError(f"{str(path)!r} cannot be written: no name holds a zero byte.")
    try:
        if path.exists():
            check_ordinary(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _take_leftovers_away(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        _WRITING.add(unfinished.name)
        try:
            # Made here and not by `write`: some writers make their files private.
            with unfinished.open("xb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            write(unfinished)
            unfinished.chmod(mode)
            _flush(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
            _WRITING.discard(unfinished.name)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise BellaError(f"{path} cannot be written: {_why(error)}.") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that is moved there when the block has filled it; after an error
    nothing is left.

    Raises:
        BellaError: something is there already, or the place cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BellaError(f"{path} holds something: name a new folder.")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        yield unfinished
        if path.exists():
            path.rmdir()
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise BellaError(f"{path} cannot be written: {_why(error)}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, where the system can promise it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # folders cannot be opened everywhere
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _why(error: Exception) -> str:
    """A failed write in words; safetensors gives the system's number in its text alone."""
    text = str(error)
    number = getattr(error, "errno", None)
    full = {code: f"os error {code})" for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
    if number in full or any(said in text for said in full.values()):
        said = os.strerror(number) if number else text.strip().rstrip(".")
        return f"{said}; free some space or name another folder, nothing half-written was left"
    return os.strerror(number) if number else text.strip().rstrip(".")


_WRITING: set[str] = set()
"""Names of the unfinished files that threads of this process are writing."""


def _take_leftovers_away(path: Path) -> None:
    """Remove what killed processes left of the same file, one of this process's number too: in a
    container numbers begin anew."""
    begin = f".{path.name}."
    for other in path.parent.iterdir():
        owner = other.name.removeprefix(begin).partition(".")[0]
        if not (other.name.startswith(begin) and owner.isdecimal()) or other.name in _WRITING:
            continue
        if int(owner) == os.getpid() or not runs(int(owner)):
            other.unlink(missing_ok=True)


def runs(pid: int) -> bool:
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


def write_sealed_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON mapping with its own checksum, for `read_sealed_json`."""
    write_json(path, sealed(plain(content)))


# ---------------------------------------------------------------- reading


def check_ordinary(path: Path) -> None:
    """Refuse what is no ordinary file: reading from a pipe or a device may never end.

    Raises:
        BellaError: a folder, a pipe, a socket or a device.
        OSError: nothing is there.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise BellaError(f"{path} is {kind} where an ordinary file is wanted: name a file.")


def read_bytes(path: Path, limit: int = LARGEST_TEXT) -> bytes:
    """The content of an ordinary file of at most ``limit`` bytes.

    Raises:
        BellaError: it is larger, or no ordinary file.
        OSError: it cannot be read.
    """
    check_ordinary(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BellaError(f"{path} has more than the {limit:,} bytes that such a file may have.")
    return content


def parsed(text: str) -> Any:
    """What a JSON text of a stranger says.

    Raises:
        ValueError: it is no JSON, nested thousands of times, or an integer of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        BellaError: no such file, or not JSON.
    """
    try:
        return json.loads(read_bytes(path), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise BellaError(f"{path.parent} holds no {path.name}: is it a run folder?") from None
    except RecursionError:
        raise BellaError(f"{path} is damaged (nested too deeply): run it again.") from None
    except BellaError:
        raise
    except (ValueError, OSError) as error:
        # ValueError: no JSON, no UTF-8, or an integer of thousands of digits.
        raise BellaError(f"{path} is damaged ({shortened(error)}): run it again.") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read JSON that is a mapping.

    Raises:
        BellaError: no such file, not JSON, or no mapping.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise BellaError(f"{path} is damaged (it holds no mapping): run it again.")
    return content


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The mapping that `write_sealed_json` wrote, or one of a time before there were checksums.

    Raises:
        BellaError: no such file, no mapping, or not as it was written.
    """
    content = read_mapping(path)
    if SEAL in content and not is_whole(content):
        raise BellaError(
            f"{path} is not as it was written (its checksum is another): run it again."
        )
    return {name: value for name, value in content.items() if name != SEAL}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# ---------------------------------------------------------------- checksums


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with the checksum of them all."""
    return {**content, SEAL: _checksum(content)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether JSON values are those that were sealed."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return content.get(SEAL) == _checksum(rest)


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their names."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- values


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


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 120, 120


def shown(value: Any) -> str:
    """``repr``, cut short where a value is long or deep, for a sentence."""
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= 300 else f"{text[:300]}..."
    except ValueError:  # an integer of thousands of digits
        return f"a very large {type(value).__name__}"


def shortened(error: Exception, limit: int = 200) -> str:
    """The first line of another library's message, for brackets within a sentence."""
    line = str(error).strip().partition("\n")[0].rstrip(".")
    return line if len(line) <= limit else f"{line[:limit]}..."


def count_values(value: Any, limit: int = 100_000) -> int:
    """How many values nested lists and mappings hold, counted up to ``limit``.

    What is held in several places counts in each: so aliases of aliases in a YAML file, few bytes
    that stand for a billion values, are seen before they are written out.
    """
    count, waiting = 0, [value]
    while waiting and count < limit:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return count
