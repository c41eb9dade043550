"""Rows of anybody's file: CSV, TSV, JSON lines, parquet, or a data set of Hugging Face's.

A row is a mapping from a column's name to what stands there. Cells of CSV and TSV are texts as they
stand: nothing is guessed of them (a label 01 is not 1, and NA is no gap).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bella.data.images import Preprocess
from bella.data.opening import is_set, open_data, shifts_of
from bella.data.sets import SETS
from bella.data.split import FRACTIONS, stratified_split
from bella.data.table import PART_NAMES, PARTS
from bella.data.written import LabelledTexts, Questions
from bella.errors import BellaError, nearest, require
from bella.files import parsed, read_bytes, shortened, shown

PREFIX = "hf:"
"""Before a data set's name on the hub, or the folder of a copy."""

LARGEST = 2**32
"""Bytes that a file may have."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """Rows with the columns that they have.

    Attributes:
        name: where they come from, for sentences.
        columns: in their order.
        rows: as they were read.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """What stands in one column.

        Raises:
            BellaError: there is none of that name; the sentence lists those that there are.
        """
        if name not in self.columns:
            raise BellaError(
                f"{self.name} has no column {name!r}: its columns are {', '.join(self.columns)}."
            )
        return [row.get(name) for row in self.rows]

    def find(self, role: str, asked: str | None, usual: Sequence[str]) -> str:
        """The column for a role: the one asked for, or one with a usual name.

        Raises:
            BellaError: there is none.
        """
        if asked is not None:
            self.column(asked)
            return asked
        small = {column.strip().lower(): column for column in reversed(self.columns)}
        for name in usual:
            if name in small:
                return small[name]
        raise BellaError(
            f"Which column of {self.name} is the {role} cannot be told: its columns are "
            f"{', '.join(self.columns)}; say --column {role}=NAME."
        )

    def has(self, asked: str | None, usual: Sequence[str]) -> bool:
        """Whether there is a column for a role."""
        names = {column.strip().lower() for column in self.columns}
        return asked is not None or any(name in names for name in usual)

    def select(self, places: Sequence[int]) -> Records:
        """Some of the rows, in this order."""
        return Records(self.name, self.columns, [self.rows[place] for place in places])


def read_records(data: str | Path, **how: Any) -> dict[str, Records]:
    """The parts of a file or data set: ``train`` alone where it is not divided.

    A column called split, part, subset or partition says which part a row belongs to: train, val or
    test. A set that is known by its name has its own parts, its shifts among them.

    Args:
        data: a file ``.csv``, ``.tsv``, ``.jsonl`` (or ``.ndjson``, ``.json``) or ``.parquet``;
            ``hf:NAME`` on the hub; a folder with a copy of such a data set; or the name of a set of
            texts or questions (`bella.data.SETS`).
        **how: of a set by name: arguments of `bella.data.open_data`.

    Raises:
        BellaError: there is no such file, or it is none of these.
        MissingExtraError: parquet and the hub need ``datasets``.
    """
    if is_set(data, how.get("folder")):
        return _of_set(str(data), how)
    strange = [name for name, value in how.items() if name != "seed" and value]
    if strange:
        readable = [name for name, one in SETS.items() if one.kind != "image"]
        raise BellaError(
            f"{strange[0]} is for a data set by name, and {data} is none: leave it out, or choose "
            f"{nearest(str(data), readable)}."
        )
    path = Path(data)
    if str(data).startswith(PREFIX) or path.is_dir():
        return _of_hub(str(data).removeprefix(PREFIX))
    reader = READERS.get(path.suffix.lower())
    if reader is None or not path.is_file():
        known = ", ".join(READERS)
        what = "is no file here" if reader else f"is no file of a kind that is read ({known})"
        raise BellaError(
            f"{path} {what}: give a file, a folder with a data set, hf:NAME, or a set's name "
            "(`bella data` lists them)."
        )
    rows = reader(path)
    if not rows:
        raise BellaError(f"{path} holds no rows: write one line an example.")
    return _by_part(Records(str(path), tuple(dict.fromkeys(k for r in rows for k in r)), rows))


def divided(
    parts: Mapping[str, Records], labels: Sequence[int] | None, seed: int
) -> dict[str, Records]:
    """Train, validation and test, those that are missing split off train; after them the shifts.

    Args:
        parts: what was read; ``train`` among them.
        labels: of train's rows, to split every class alike; ``None`` splits at random.
        seed: of the split.

    Raises:
        BellaError: there is no train, or a part is left without rows.
    """
    if "train" not in parts:
        known = ", ".join(parts)
        raise BellaError(f"The data have the parts {known} and no train: name one so.")
    train = parts["train"]
    shares = {part: share for part, share in FRACTIONS.items() if part not in parts}
    shares["train"] = FRACTIONS["train"]
    whole = sum(shares.values())
    drawn = stratified_split(
        [0] * len(train) if labels is None else labels,
        {part: share / whole for part, share in shares.items()},
        seed,
    )
    found = dict(parts) | {part: train.select(places) for part, places in drawn.items()}
    empty = [part for part in PARTS if not len(found[part])]
    if empty:
        raise BellaError(
            f"{train.name} has too few rows for the parts {', '.join(PARTS)} (none is left for "
            f"{empty[0]}): give more."
        )
    return {part: found[part] for part in (*PARTS, *shifts_of(found))}


def _by_part(records: Records) -> dict[str, Records]:
    names = {column.strip().lower(): column for column in records.columns}
    column = next((names[name] for name in PART_NAMES if name in names), None)
    if column is None:
        return {"train": records}
    places: dict[str, list[int]] = {}
    for place, cell in enumerate(records.column(column)):
        word = str(cell).strip().lower()
        part = next((part for part, known in PARTS.items() if word in known), None)
        if part is None:
            raise BellaError(
                f"Row {place + 1} of {records.name} is of the part {shown(cell)}: write train, val "
                f"or test, or call the column {column!r} otherwise to have the rows split."
            )
        places.setdefault(part, []).append(place)
    return {part: records.select(some) for part, some in places.items()}


def _of_set(name: str, how: Mapping[str, Any]) -> dict[str, Records]:
    """The parts of a set by name; an example of no class has no label."""
    found: dict[str, Records] = {}
    for part, some in open_data(name, Preprocess(32), **how).items():
        rows: list[Row]
        if isinstance(some, LabelledTexts):
            columns: tuple[str, ...] = ("text", "label")
            names = [None if label < 0 else some.classes[label] for label in some.labels]
            rows = [
                dict(zip(columns, row, strict=True)) for row in zip(some.texts, names, strict=True)
            ]
        elif isinstance(some, Questions):
            columns = ("question", "options", "answer")
            held = zip(some.questions, some.options, some.labels, strict=True)
            rows = [{"question": q, "options": list(o), "answer": o[k]} for q, o, k in held]
        else:
            raise BellaError(
                f"{name} holds examples of the kind {some.kind!r}, and texts or questions are read "
                "here: leave --task out for images."
            )
        found[part] = Records(f"{name} ({part})", columns, rows)
    return found


# ------------------------------------------------------------ kinds of files


def _separated(separator: str) -> Any:
    def read(path: Path) -> list[Row]:
        try:
            text = read_bytes(path, LARGEST).decode("utf-8-sig")
            csv.field_size_limit(2**27)
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
            names = reader.fieldnames or []
            if len(set(names)) < len(names):
                raise csv.Error("two columns have one name")
            rows: list[Row] = [row for row in reader if any(row.values())]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BellaError(
                f"{path} cannot be read as a table in UTF-8 ({shortened(error)})."
            ) from error
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise BellaError(
                    f"Row {number} of {path} has not as many cells as the first: put texts that "
                    "hold the separator or line ends between quotation marks."
                )
        return rows

    return read


def _json_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    try:
        text = read_bytes(path, LARGEST).decode("utf-8-sig")
        if text.lstrip().startswith("["):
            found = parsed(text)
        else:
            found = [parsed(line) for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BellaError(
            f"{path} cannot be read as JSON lines ({shortened(error)}): write one object a line."
        ) from error
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise BellaError(f"Line {number} of {path} is no JSON object: write one a line.")
        rows.append(row)
    return rows


def _parquet(path: Path) -> list[Row]:
    parquet = require("pyarrow.parquet", extra="hf")
    try:
        return parquet.read_table(path).to_pylist()
    except Exception as error:  # arrow has errors of its own
        raise BellaError(f"{path} cannot be read as parquet ({shortened(error)}).") from error


def _of_hub(name: str) -> dict[str, Records]:
    from bella.data.hub import OTHERS, load_all

    loaded = load_all(name, None)
    found: dict[str, Records] = {}
    for part, known in PARTS.items():
        there = [word for word in (*known, *OTHERS.get(part, ())) if word in loaded]
        if there:
            rows = loaded[there[0]]
            found[part] = Records(f"{name} ({there[0]})", tuple(rows.column_names), _named(rows))
    if not found:
        raise BellaError(f"{name} has the parts {', '.join(loaded)} and no train.")
    return found


def _named(rows: Any) -> list[Row]:
    """Rows of a data set, with classes by their names."""
    datasets = require("datasets", extra="hf")
    classes = {
        n: kind for n, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)
    }
    return [
        row
        | {
            name: kind.int2str(row[name])
            for name, kind in classes.items()
            if isinstance(row[name], int) and row[name] >= 0
        }
        for row in rows.to_list()
    ]


READERS = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}
"""By a file's ending."""
