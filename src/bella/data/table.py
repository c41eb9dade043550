"""Labelled images listed in a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages, is_image
from bella.errors import BellaError, nearest
from bella.files import read_bytes

PATH_NAMES = ("path", "image", "file")
LABEL_NAMES = ("label", "class")
PART_NAMES = ("split", "part", "subset", "partition")
DOMAIN_NAMES = ("domain", "site", "environment")
PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
"""Parts of a data set, and what their folders, or their lines in a CSV file, may be called."""


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The non-empty rows of a CSV file with their line numbers; Excel's byte-order mark is cut.

    Names of files may be any bytes, as they are on disk (Python's surrogateescape).
    """
    try:
        text = read_bytes(path).decode("utf-8-sig", "surrogateescape")
        if "\0" in text:
            raise csv.Error("it holds zeros: another encoding")
        reader = csv.reader(io.StringIO(text, newline=""))
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, csv.Error) as error:
        raise BellaError(f"{path} cannot be read as a CSV file in UTF-8 ({error}).") from error


def _columns(path: Path, first: Sequence[str]) -> tuple[int, int, bool]:
    """Which columns hold the path and the label, and whether the first row is a header.

    Columns are found by their names; where no name is known, the first two are taken.
    """
    names = [cell.strip().lower() for cell in first]
    paths = [names.index(name) for name in PATH_NAMES if name in names]
    labels = [names.index(name) for name in LABEL_NAMES if name in names]
    if paths and labels:
        return paths[0], labels[0], True
    if paths or labels or len(names) < 2:
        missing = f"label ({' or '.join(LABEL_NAMES)})"
        if not paths:
            missing = f"path ({', '.join(PATH_NAMES)})"
        raise BellaError(
            f"{path} has no column for the {missing}: its first row is {','.join(first)!r}, and "
            "commas must separate a path from a label."
        )
    # A name without an ending may be an image's all the same.
    name = first[0].strip()
    return 0, 1, not is_image(Path(name)) and not _is_there(path.parent / name)


def _part_column(first: Sequence[str], header: bool) -> int | None:
    """Which column says to which part of the data a line belongs, if one does."""
    names = [cell.strip().lower() for cell in first] if header else []
    return next((names.index(name) for name in PART_NAMES if name in names), None)


def domains_in(path: Path) -> list[str]:
    """The domain of each image of an `ImageTable`, in its order.

    Raises:
        BellaError: the file has no column of domains, or a line has none.
    """
    (_, first), *rows = _rows(path)
    names = [cell.strip().lower() for cell in first]
    column = next((names.index(name) for name in DOMAIN_NAMES if name in names), None)
    if column is None:
        raise BellaError(
            f"{path} has no column called {', '.join(DOMAIN_NAMES)}: add one that says which "
            "domain each image is of."
        )
    found = [(line, row[column].strip() if column < len(row) else "") for line, row in rows]
    empty = [line for line, name in found if not name]
    if empty:
        raise BellaError(f"Line {empty[0]} of {path} has no domain: write one for each image.")
    return [name for _, name in found]


def _part(path: Path, line: int, cell: str) -> str:
    """The part that a line names.

    Raises:
        BellaError: it names none.
    """
    for part, names in PARTS.items():
        if cell.strip().lower() in names:
            return part
    raise BellaError(
        f"Line {line} of {path} is of the part {cell.strip()[:80]!r}: write train, val or test, or "
        "take the column away to have the images split."
    )


def encode(path: Path, names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Index of each label in ``classes``: labels are names of classes, or else their indices.

    Indices are never taken where a class is called by a number: one label that is unknown would
    turn the meaning of all the others.

    Raises:
        BellaError: a label is neither.
    """
    index = {name: place for place, name in enumerate(classes)}
    by_number = {str(place): place for place in range(len(classes))}
    if all(name in index for name in names):
        return [index[name] for name in names]
    if all(name in by_number for name in names) and not any(map(_is_integer, classes)):
        return [by_number[name] for name in names]
    unknown = next(name for name in names if name not in index)
    raise BellaError(
        f"{path} has the label {unknown!r}, which is none of the {len(classes)} classes: near are "
        f"{nearest(unknown, classes)}."
    )


def _sorted_labels(names: Sequence[str]) -> list[str]:
    """Distinct labels, by number where all are numbers."""
    distinct = set(names)
    if all(map(_is_integer, distinct)):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 100


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


class ImageTable(LabelledImages):
    """Images listed in a CSV file of paths and labels.

    The columns are those called path, image or file, and label or class; where no name is known,
    the first two, with or without a header. Paths are relative to the file's folder, and each image
    stands in one line: listed twice, it would be in two parts of a split. A column called split,
    part, subset or partition says which part each line belongs to: train, val or test.

    Args:
        path: the CSV file.
        preprocess: from a PIL image to a tensor.
        classes: names of the classes; without them, the labels that occur, sorted.

    Raises:
        BellaError: the file cannot be read, is empty or lacks a column, an image is missing or
            listed twice, or a label is unknown to ``classes`` or not in UTF-8, or a part to us.
    """

    columns = (*LabelledImages.columns, "parts")

    def __init__(
        self, path: str | Path, preprocess: Preprocess, classes: Sequence[str] | None = None
    ):
        path = Path(path)
        rows = _rows(path)
        if not rows:
            raise BellaError(f"{path} is empty: write one line path,label per image.")
        path_column, label_column, header = _columns(path, rows[0][1])
        part_column = _part_column(rows[0][1], header)
        self.parts: list[str | None] = []  # of each line, where the file says it
        files: list[Path] = []
        names: list[str] = []
        lines: dict[str, int] = {}
        for line, row in rows[header:]:
            if len(row) <= max(path_column, label_column) or not row[label_column].strip():
                raise BellaError(f"Line {line} of {path} has no label: write path,label.")
            label = row[label_column].strip()
            if not label.isprintable():
                raise BellaError(
                    f"{path} cannot be read as a CSV file in UTF-8 (the label in line {line} is "
                    f"{label[:80]!r}): save it as UTF-8."
                )
            file = path.parent / row[path_column].strip()
            before = lines.setdefault(os.path.normpath(file), line)
            if before != line:
                raise BellaError(
                    f"{path} lists {row[path_column].strip()} in line {before} and in line {line}: "
                    "list each image once."
                )
            files.append(file)
            names.append(label)
            told = row[part_column] if part_column is not None and part_column < len(row) else ""
            self.parts.append(None if part_column is None else _part(path, line, told))
        if not files:
            raise BellaError(f"{path} has a header and no rows: write one line per image.")
        absent = [file for file in files if not _is_there(file)]
        if absent and not str(absent[0]).isprintable():
            raise BellaError(
                f"{path} cannot be read as a CSV file in UTF-8 (it names {str(absent[0])!r}, which "
                "does not exist): save it as UTF-8."
            )
        if absent:
            raise BellaError(
                f"{len(absent)} of the {len(files)} images in {path} do not exist, the first is "
                f"{absent[0]}: paths are relative to the CSV file's folder."
            )
        known = tuple(classes) if classes is not None else tuple(_sorted_labels(names))
        super().__init__(files, encode(path, names, known), known, preprocess)
