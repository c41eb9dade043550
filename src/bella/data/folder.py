"""Anybody's images: a folder with one sub-folder a class, or a CSV of paths and labels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bella.data.images import load_image
from bella.data.split import stratified_split
from bella.errors import BellaError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
Transform = Callable[[Image.Image], Tensor]


class LabelledImages(Dataset):
    """Image files with class numbers.

    Attributes:
        paths: the files.
        labels: class number of each.
        classes: names of the classes.
        preprocess: from a PIL image to a tensor.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocess: Transform,
    ):
        self.paths = [Path(path) for path in paths]
        self.labels = [int(label) for label in labels]
        self.classes = tuple(classes)
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocess(load_image(self.paths[index])), self.labels[index]

    def part(self, positions: Sequence[int]) -> LabelledImages:
        """The images at some positions."""
        return LabelledImages(
            [self.paths[i] for i in positions],
            [self.labels[i] for i in positions],
            self.classes,
            self.preprocess,
        )


def image_files(root: Path) -> list[Path]:
    """All image files below ``root``, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)


def open_folder(
    root: str | Path, preprocess: Transform, classes: Sequence[str] | None = None
) -> LabelledImages:
    """Images in one sub-folder a class.

    Args:
        root: the folder.
        preprocess: from a PIL image to a tensor.
        classes: names in order; by default the sub-folders', sorted.

    Raises:
        BellaError: no such folder, no class folders, no images, or an unknown class.
    """
    root = Path(root)
    if not root.is_dir():
        raise BellaError(f"There is no folder {root}.")
    found = {
        folder.name: image_files(folder) for folder in sorted(root.iterdir()) if folder.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise BellaError(
            f"{root} holds no images in class folders: put them in one sub-folder for each class."
        )
    names = tuple(classes) if classes is not None else tuple(found)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise BellaError(
            f"{root} has class {unknown[0]!r}, which is not one of {', '.join(names)}."
        )
    pairs = [(path, names.index(name)) for name, files in found.items() for path in files]
    return LabelledImages([p for p, _ in pairs], [y for _, y in pairs], names, preprocess)


def open_table(
    path: str | Path, preprocess: Transform, classes: Sequence[str] | None = None
) -> LabelledImages:
    """Images listed in a CSV with columns ``path`` and ``label`` (or its first two columns).

    Args:
        path: the CSV; image paths in it are relative to its folder.
        preprocess: from a PIL image to a tensor.
        classes: names in order; by default the labels that occur, sorted (numbers as numbers).

    Raises:
        BellaError: no such file, no rows, a missing column, or an unknown class.
    """
    path = Path(path)
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise BellaError(f"There is no table {path}.") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = next((header.index(name) for name in ("path", "image", "file") if name in header), None)
    label = next((header.index(name) for name in ("label", "class") if name in header), None)
    if named is None or label is None:
        if len(header) < 2 or not Path(header[0]).suffix:
            raise BellaError(f"{path} needs the columns 'path' and 'label'.")
        named, label = 0, 1
    else:
        rows = rows[1:]
    if not rows:
        raise BellaError(f"{path} lists no images.")
    if any(len(row) <= max(named, label) for row in rows):
        raise BellaError(f"{path} has a row without a path and a label.")
    values = [row[label].strip() for row in rows]
    order = sorted(set(values), key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    names = tuple(classes) if classes is not None else tuple(order)
    unknown = [value for value in order if value not in names]
    if unknown:
        raise BellaError(
            f"{path} has class {unknown[0]!r}, which is not one of {', '.join(names)}."
        )
    files = [path.parent / row[named].strip() for row in rows]
    return LabelledImages(files, [names.index(value) for value in values], names, preprocess)


def open_images(
    path: str | Path, preprocess: Transform, classes: Sequence[str] | None = None
) -> LabelledImages:
    """A folder or a CSV, whichever ``path`` is.

    Raises:
        BellaError: see `open_folder` and `open_table`.
    """
    is_table = Path(path).suffix.lower() == ".csv"
    return (open_table if is_table else open_folder)(path, preprocess, classes)


def open_splits(
    path: str | Path,
    preprocess: Transform,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> dict[str, LabelledImages]:
    """Train, validation and test parts of a folder or a CSV.

    Sub-folders ``train``, ``val`` and ``test`` are taken as they are; what is missing is divided
    off by a stratified split with ``seed``.

    Raises:
        BellaError: no images, or a class with too few of them to split.
    """
    root = Path(path)
    given: dict[str, Path] = {}
    if root.is_dir():
        for name, spellings in SPLITS.items():
            for spelling in spellings:
                if (root / spelling).is_dir():
                    given[name] = root / spelling
    train_share, validation_share, _ = fractions
    if "train" not in given:
        whole = open_images(root, preprocess)
        shares = dict(zip(("train", "validation", "test"), fractions, strict=True))
        return _divided(whole, shares, seed)
    train = open_folder(given["train"], preprocess)
    parts = {"train": train}
    if "validation" not in given:
        total = train_share + validation_share
        shares = {"train": train_share / total, "validation": validation_share / total}
        parts = _divided(train, shares, seed)
    for name in ("validation", "test"):
        if name in given:
            parts[name] = open_folder(given[name], preprocess, train.classes)
    return parts


def _divided(
    whole: LabelledImages, shares: dict[str, float], seed: int
) -> dict[str, LabelledImages]:
    parts = stratified_split(whole.labels, shares, seed)
    empty = [name for name, positions in parts.items() if not positions]
    if empty:
        raise BellaError(
            f"{len(whole)} images are too few for a {empty[0]} part: add images, or give the parts "
            "as sub-folders train, val and test."
        )
    return {name: whole.part(positions) for name, positions in parts.items()}
