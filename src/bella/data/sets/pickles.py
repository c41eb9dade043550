"""Arrays out of a pickle that a stranger wrote.

A pickle is a program: read by Python's own reader it may start anything. Here nothing of what it
names is called. The names that NumPy and Python write arrays by stand for small records of our
own; every other name is refused; and arrays are made from the records' bytes when the file is read.
What remains are lists, tuples, mappings, strings and numbers.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from bella.errors import BellaError
from bella.files import read_bytes, shortened

LARGEST = 2**28
"""Bytes that a pickle may have; those of CIFAR have 155 million at most."""

KINDS = "biuf"
"""Truth values, integers and floating-point numbers: the arrays that are read."""


class _Type:
    """What a pickle says of the type of an array's elements."""

    def __init__(self, name: Any, *_: Any):
        self.name = name.decode("ascii") if isinstance(name, bytes) else str(name)
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else str(order)

    def dtype(self) -> np.dtype:
        kind = np.dtype(self.name)
        if kind.kind not in KINDS or kind.fields or kind.subdtype:
            raise ValueError(f"arrays of {self.name!r}")
        return kind.newbyteorder("<" if self.order == "<" else ">") if self.order in "<>" else kind


class _Array:
    """What a pickle says of an array."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, kind, fortran, content = self.state
        if not isinstance(content, bytes):
            raise ValueError("an array without bytes")
        shape = tuple(int(size) for size in shape)
        dtype = kind.dtype()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    """How Python 3 writes bytes in the older forms of a pickle."""
    if encoding not in ("latin1", b"latin1") or not isinstance(text, str):
        raise ValueError(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _frombuffer(content: Any, kind: _Type, shape: Any, order: Any) -> _Array:
    """How arrays stand in pickles of protocol 5."""
    if isinstance(content, bytearray):  # of an array that could be written to
        content = bytes(content)
    found = _Array()
    found.state = (1, shape, kind, order == "F", content)
    return found


def _no_bytes() -> bytes:
    """How Python 3 writes no bytes in the older forms."""
    return b""


class _NoArray:
    """The class that NumPy names beside each array; nothing is made of it."""


RECORDS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _NoArray,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
"""What stands for the names that may occur."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in RECORDS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and arrays alone are read")
        return RECORDS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it names something outside the file")


def read_pickle(path: Path) -> Any:
    """Arrays, strings, numbers and plain containers from a pickle; strings of Python 2 are bytes.

    Raises:
        BellaError: the file is missing, damaged or too large, or holds anything else.
    """
    content = read_bytes(path, LARGEST)
    try:
        return _made(_Reader(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:  # a pickle that is cut or forged fails in many ways
        raise BellaError(
            f"{path} cannot be read as a pickle of arrays ({shortened(error)}): get it anew, and "
            "read it with no other program if you do not know who made it."
        ) from None


def _made(value: Any, depth: int = 0) -> Any:
    """The same with arrays in the place of their records."""
    if depth > 20:
        raise ValueError("nested too deeply")
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, dict):
        return {_made(k, depth + 1): _made(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_made(item, depth + 1) for item in value)
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    raise ValueError(f"a {type(value).__name__.strip('_')}")
