"""Labelled images listed in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages, is_image
from bella.errors import BellaError, nearest

PATH_NAMES = ("path", "image", "file")
LABEL_NAMES = ("label", "class")


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The non-empty rows of a CSV file with their line numbers; Excel's byte-order mark is cut."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
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
    return 0, 1, not is_image(Path(first[0].strip()))


def _encode(path: Path, names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Index of each label in ``classes``: labels are names of classes, or else their indices."""
    index = {name: place for place, name in enumerate(classes)}
    by_number = {str(place): place for place in range(len(classes))}
    for lookup in (index, by_number):
        if all(name in lookup for name in names):
            return [lookup[name] for name in names]
    unknown = next(name for name in names if name not in index)
    raise BellaError(
        f"{path} has the label {unknown!r}, which is none of the {len(classes)} classes: near are "
        f"{nearest(unknown, classes)}."
    )


def _sorted_labels(names: Sequence[str]) -> list[str]:
    """Distinct labels, by number where all are numbers."""
    distinct = set(names)
    return sorted(distinct, key=int) if all(map(_is_integer, distinct)) else sorted(distinct)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


class ImageTable(LabelledImages):
    """Images listed in a CSV file of paths and labels.

    The columns are those called path, image or file, and label or class; where no name is known,
    the first two, with or without a header. Paths are relative to the file's folder.

    Args:
        path: the CSV file.
        preprocess: from a PIL image to a tensor.
        classes: names of the classes; without them, the labels that occur, sorted.

    Raises:
        BellaError: the file cannot be read, is empty or lacks a column, an image is missing, or a
            label is unknown to ``classes``.
    """

    def __init__(
        self, path: str | Path, preprocess: Preprocess, classes: Sequence[str] | None = None
    ):
        path = Path(path)
        rows = _rows(path)
        if not rows:
            raise BellaError(f"{path} is empty: write one line path,label per image.")
        path_column, label_column, header = _columns(path, rows[0][1])
        files, names = [], []
        for line, row in rows[header:]:
            if len(row) <= max(path_column, label_column) or not row[label_column].strip():
                raise BellaError(f"Line {line} of {path} has no label: write path,label.")
            files.append(path.parent / row[path_column].strip())
            names.append(row[label_column].strip())
        if not files:
            raise BellaError(f"{path} has a header and no rows: write one line per image.")
        absent = [file for file in files if not file.is_file()]
        if absent:
            raise BellaError(
                f"{len(absent)} of the {len(files)} images in {path} do not exist, the first is "
                f"{absent[0]}: paths are relative to the CSV file's folder."
            )
        known = tuple(classes) if classes is not None else tuple(_sorted_labels(names))
        super().__init__(files, _encode(path, names, known), known, preprocess)
