"""Rows of predictions or answers in a file: CSV, or JSON lines, by the name's ending."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bella.errors import BellaError
from bella.files import plain, write_whole

LINES = (".jsonl", ".ndjson")
"""Endings of files of JSON lines."""


def check_rows(path: str | Path) -> Path:
    """Refuse a file that rows cannot be written to, before anything is predicted for it.

    Raises:
        BellaError: another ending, or a folder of that name.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", *LINES):
        raise BellaError(f"{path}: rows are written as .csv or .jsonl.")
    if path.is_dir():
        raise BellaError(f"{path} is a folder: name a file to write.")
    return path


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows whole, in UTF-8; names of files that are no text keep their bytes in a CSV.

    In a CSV there is a column for whatever any row has; lists and mappings stand in it as JSON.

    Raises:
        BellaError: see `check_rows`, or the file cannot be written.
    """
    path = check_rows(path)
    if path.suffix.lower() in LINES:
        lines = [json.dumps(plain(dict(r)), ensure_ascii=False, default=str) + "\n" for r in rows]
        # A byte that is no text becomes JSON's own escape of it.
        content = "".join(lines).encode("utf-8", "backslashreplace")
        write_whole(path, lambda unfinished: unfinished.write_bytes(content))
        return

    def write(unfinished: Path) -> None:
        with unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {
                        name: json.dumps(cell) if isinstance(cell, list | dict) else cell
                        for name, cell in row.items()
                    }
                )

    write_whole(path, write)
