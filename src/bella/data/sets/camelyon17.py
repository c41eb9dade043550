"""CAMELYON17 as WILDS cuts it: 455,954 patches of lymph nodes, 96x96 pixels, from five hospitals.

The task is whether the centre of a patch holds tumour. Three hospitals train; the other two are the
shift: other scanners, other stains. The folder is WILDS's own, with ``metadata.csv`` and
``patches/``. Hospitals are numbered from 0, as in the file.

Source: Bándi et al., From detection of individual metastases to classification of lymph node status
at the patient level, IEEE TMI 38, 2019; Koh et al., WILDS, ICML 2021. CC0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages
from bella.data.sets.base import DataSet
from bella.errors import BellaError
from bella.files import read_bytes

CLASSES = ("normal", "tumor")
METADATA = "metadata.csv"
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
COUNT = 455_954
HALVES = {"validation": 0.5, "test": 0.5}


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """The lines of the metadata with their numbers."""
    text = read_bytes(path, 2**28).decode("utf-8", "replace")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise CAMELYON17.damaged(path, f"no column {', '.join(missing)}")
    return ((reader.line_num, row) for row in reader)


def _text(row: dict[str, str]) -> str:
    """A line as it stands in the file, up to where it is cut."""
    return ",".join(value for value in row.values() if isinstance(value, str))[:80]


def _patch(root: Path, row: dict[str, str]) -> Path:
    where = f"patient_{int(row['patient']):03d}_node_{int(row['node'])}"
    name = f"patch_{where}_x_{int(row['x_coord'])}_y_{int(row['y_coord'])}.png"
    return root / "patches" / where / name


def camelyon17(
    folder: Path | None,
    preprocess: Preprocess,
    seed: int = 0,
    *,
    hospitals: Sequence[int] = (0, 3, 4),
) -> dict[str, Any]:
    """The parts of CAMELYON17, and each other hospital as a part of its own.

    WILDS holds back a tenth of the patches of each training hospital; half of those, by class, are
    ``validation``, the others ``test``. They are of the same slides as the training patches, so
    that they are easier than a new slide. ``hospital-1`` is what WILDS validates on, ``hospital-2``
    what it tests on.

    Args:
        folder: holds ``metadata.csv`` and ``patches``.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of the halves.
        hospitals: to train on.

    Raises:
        BellaError: files are missing or damaged, or there is no such hospital.
    """
    _, root = CAMELYON17.found(folder)
    groups: dict[str, tuple[list[Path], list[int]]] = {}
    known: set[int] = set()
    for line, row in _rows(root / METADATA):
        try:
            hospital, label, held = int(row["center"]), int(row["tumor"]), int(row["split"])
            path = _patch(root, row)
        except (TypeError, ValueError):
            raise CAMELYON17.damaged(root / METADATA, f"line {line}: {_text(row)}") from None
        if label not in (0, 1):
            raise CAMELYON17.damaged(root / METADATA, f"line {line}: tumor is {label}")
        known.add(hospital)
        own = ("held" if held else "train") if hospital in hospitals else f"hospital-{hospital}"
        paths, labels = groups.setdefault(own, ([], []))
        paths.append(path)
        labels.append(label)
    absent = sorted(set(hospitals) - known)
    if absent or not hospitals:
        raise BellaError(
            f"hospitals={list(hospitals)}: {root / METADATA} knows {sorted(known)} to choose from."
        )
    lacking = [name for name in ("train", "held") if name not in groups]
    if lacking:
        raise CAMELYON17.damaged(root / METADATA, "no line of a training hospital is held back")
    _check_patches(root, [path for paths, _ in groups.values() for path in paths])
    plain = preprocess.plain()
    held_back = LabelledImages(*groups.pop("held"), CLASSES, plain).split(HALVES, seed)
    train = LabelledImages(*groups.pop("train"), CLASSES, preprocess)
    others = {
        name: LabelledImages(paths, labels, CLASSES, plain)
        for name, (paths, labels) in sorted(groups.items())
    }
    return {"train": train} | held_back | others


def _check_patches(root: Path, paths: Sequence[Path]) -> None:
    """Refuse a copy in which patches are missing: a folder is listed once, not asked for each."""
    names: dict[Path, set[str]] = {}
    for place in {path.parent for path in paths}:
        names[place] = {p.name for p in place.iterdir()} if place.is_dir() else set()
    missing = [path for path in paths if path.name not in names[path.parent]]
    if missing:
        raise BellaError(
            f"{len(missing):,} of the {len(paths):,} patches that {root / METADATA} names are "
            f"missing, the first is {missing[0]}. {CAMELYON17.get()}"
        )
    CAMELYON17.expect(len(paths), COUNT, "patches", root)


CAMELYON17 = DataSet(
    "camelyon17",
    "CAMELYON17 (WILDS)",
    "image",
    "455,954 patches of lymph nodes, 96x96 pixels, with tumour or without, from five hospitals",
    {
        "train": "the 302,436 patches of hospitals 0, 3 and 4 that WILDS trains on",
        "validation": "half of the 33,560 that it holds back of these, by class",
        "test": "the other half: the same slides",
        "hospital-1": "34,904 patches of a hospital that no training patch comes from",
        "hospital-2": "85,054 patches of another such hospital, WILDS's test",
    },
    "https://wilds.stanford.edu/datasets, camelyon17_v1.0.tar.gz, 10,658,709,504 bytes",
    "Bándi et al., IEEE TMI 38, 2019; Koh et al., WILDS, ICML 2021; CC0",
    camelyon17,
    {"WILDS": (METADATA, "patches/")},
)
