"""Tensors and JSON in one safetensors file that knows its own checksum.

A record of JSON values stands in the file's metadata, beside the tensors that it belongs to. One
file is replaced in one step, so tensors and record are always of the same moment. The record holds
the SHA-256 of the tensors (names, dtypes, shapes and bytes) and one of itself: a flipped bit, a
tensor that was exchanged, left out or turned into another dtype is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bella.errors import BellaError
from bella.files import check_ordinary, is_whole, sealed, shortened, write_whole

ENTRY = "bella"
"""Where the record stands in the metadata."""

LARGEST_HEADER = 2**26
"""Bytes of names, shapes and record that a file may begin with."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: names, dtypes, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        found.update(f"{name!r} {value.dtype} {tuple(value.shape)}\n".encode("utf-8", "replace"))
        if value.numel():
            found.update(bytes_of(value))
    return found.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row by row.

    One element counts as contiguous to torch whatever its stride, and is then no bytes to view: a
    copy has the strides that its shape says.
    """
    flat = tensor.detach().cpu().reshape(-1)
    if flat.stride() != (1,):
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def write_sealed(
    path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> dict[str, Any]:
    """Write tensors with a record of JSON values; returns the record as it stands in the file.

    Raises:
        BellaError: see `bella.files.write_whole`.
    """
    whole = sealed({**record, "tensors": digest(tensors)})
    # One entry: several would stand in any order, and equal saves are equal files.
    metadata = {ENTRY: json.dumps(whole, allow_nan=False)}
    write_whole(path, lambda place: save_file(dict(tensors), place, metadata=metadata))
    return whole


def read_sealed(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Record and tensors of a file; ``None`` for the record of a file that has none.

    Raises:
        BellaError: the file is damaged, or no safetensors file.
        FileNotFoundError: nothing is there.
    """
    try:
        check_ordinary(path)
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record = json.loads(metadata[ENTRY]) if ENTRY in metadata else None
    except (FileNotFoundError, BellaError):
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        # RuntimeError holds RecursionError, of a record that is nested thousands of times.
        raise BellaError(f"{path} cannot be read: {shortened(error)}.") from None
    if record is None:
        return None, tensors
    if not isinstance(record, dict) or not is_whole(record):
        raise BellaError(f"{path} cannot be read: its record is not as it was written.")
    if record.get("tensors") != digest(tensors):
        raise BellaError(
            f"{path} cannot be read: its tensors are not those that were written (their checksum "
            "is another)."
        )
    return record, tensors


def _check_header(path: Path) -> None:
    """Refuse a header that is larger than the file, or than any real one."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= min(LARGEST_HEADER, path.stat().st_size - 8):
        raise BellaError(f"{path} cannot be read: it is cut short, or no safetensors file.")
