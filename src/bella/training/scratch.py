"""Tensors in temporary files that the system takes back, whatever happens to the process.

Each file is nameless from its first moment (`tempfile.TemporaryFile`: ``O_TMPFILE``, or unlinked
when opened; deleted on close elsewhere), so that neither an exception nor SIGTERM nor SIGKILL
leaves it. Its blocks are allocated before it is mapped: a mapping without blocks behind it ends the
process by SIGBUS on a full disk.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import IO

import torch
from torch import Tensor

from bella.errors import BellaError

STRIDE = 2**24
"""Bytes of zeros that are written at once where the system cannot allocate blocks."""


class NoRoomError(BellaError):
    """The folder for temporary files has no room."""


def tensors_on_disk(like: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Tensors of ``rows`` rows, each like one of ``like`` from its second axis on.

    Raises:
        NoRoomError: the folder for temporary files has too little room for them.
    """
    shapes = [(rows, *x.shape[1:]) for x in like]
    sizes = [math.prod(s) * x.element_size() for s, x in zip(shapes, like, strict=True)]
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if sum(sizes) > free:
            raise NoRoomError(_sentence(sum(sizes), f"{folder} has {free:,} free"))
        return [
            _mapped(size, x.dtype).view(shape) if size else x.new_empty(shape, device="cpu")
            for size, shape, x in zip(sizes, shapes, like, strict=True)
        ]
    except OSError as error:
        raise NoRoomError(
            _sentence(sum(sizes), f"{tempfile.tempdir or 'no folder'} gives none ({error})")
        ) from None


def _mapped(size: int, dtype: torch.dtype) -> Tensor:
    with tempfile.TemporaryFile(prefix="bella-prefix-") as file:
        _allocate(file, size)
        # The mapping stays when the file is closed, and goes with the tensor.
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype)


def _allocate(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    zeros = bytes(min(size, STRIDE))
    for start in range(0, size, STRIDE):
        file.write(zeros[: size - start])
    file.flush()


def _sentence(size: int, cause: str) -> str:
    return (
        f"The cached prefix takes {size:,} bytes on disk and {cause}: set TMPDIR to a folder with "
        "room, raise cache_bytes to hold it in memory, or pass cache_prefix=False."
    )
