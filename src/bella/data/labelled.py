"""Data sets of labelled examples: columns of equal length, and what splits and selects them.

`Labelled` is what all of bella's data sets are. Images stand here; texts and questions, which
nobody has tokenised yet, in `bella.data.written`.
"""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bella.data.images import Preprocess, load_image
from bella.data.split import stratified_split
from bella.errors import BellaError, nearest

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".gif",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
"""Endings of the files that count as images, in either case."""


def is_image(path: Path) -> bool:
    """Whether ``path`` is named like an image; hidden files are not (``._a.jpg`` of an archive)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_in(folder: Path) -> list[Path]:
    """The images in a folder at any depth, sorted; a warning counts what is passed over.

    Hidden files and folders (thumbnails, an archive's leavings) are passed over, and so are files
    that are not named like an image.
    """
    found: list[Path] = []
    other: Counter[str] = Counter()
    hidden = 0
    for here, folders, names in os.walk(folder, followlinks=False):
        for name in names:
            path = Path(here, name)
            if is_image(path):
                found.append(path)
            elif path.suffix.lower() in SUFFIXES:
                hidden += 1
            elif not name.startswith(".") and name.lower() not in _LEAVINGS:
                other[path.suffix.lower() or "no ending"] += 1
        kept = [name for name in folders if not name.startswith(".")]
        for name in set(folders) - set(kept):
            hidden += sum(
                Path(inner).suffix.lower() in SUFFIXES
                for *_, inners in os.walk(Path(here, name))
                for inner in inners
            )
        linked = [name for name in kept if Path(here, name).is_symlink()]
        if linked:  # they may lead in a circle
            other["linked folder"] += len(linked)
        folders[:] = kept
    said = [f"{hidden} hidden images"] if hidden else []
    if other:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(other.items())[:5])
        said.append(f"{other.total()} files that are not named like an image ({kinds})")
    if said:
        warnings.warn(f"{folder}: {' and '.join(said)} are left out.", stacklevel=4)
    return sorted(found)


_LEAVINGS = ("thumbs.db", "desktop.ini")


Kind = Literal["image", "text", "question", "image+question"]
"""What examples are: a picture, a text, a question with options of its own, or one on a picture."""

UNKNOWN = -1
"""The label of an example that is of no class, or whose class nobody knows; it scores nothing."""

OnBadImage = Literal["stop", "skip"]
"""What to do about images that cannot be read: ``stop`` at the first one that is met, with its
name, or read all in advance, ``skip`` those and say how many they are."""


def readable(count: int, read: Callable[[int], object], on_bad_image: OnBadImage) -> list[bool]:
    """Which images can be read; a warning counts the others and names the first.

    Args:
        count: how many images there are.
        read: reads the image of a position.
        on_bad_image: see `OnBadImage`.

    Raises:
        BellaError: ``on_bad_image`` is unknown, or none can be read.
    """
    if on_bad_image not in ("stop", "skip"):
        raise BellaError(f"on_bad_image={on_bad_image!r}: choose 'stop' or 'skip'.")
    if on_bad_image == "stop":
        return [True] * count
    good: list[bool] = []
    first: BellaError | None = None
    for position in range(count):
        try:
            read(position)
            good.append(True)
        except BellaError as error:
            first = first or error
            good.append(False)
    if first is not None:
        said = f"{len(good) - sum(good)} of {len(good)} images cannot be read"
        if not any(good):
            raise BellaError(f"{said}, so none is left; the first: {first}") from first
        warnings.warn(f"{said} and are skipped; the first: {first}", stacklevel=4)
    return good


_READINGS = itertools.count()
"""Numbers for the times that images were read to leave out the bad ones."""

Some = TypeVar("Some", bound="Labelled")


class Labelled(Dataset[Any]):
    """Examples with labels, held in columns; item i is (input, label).

    Attributes:
        labels: for each example the index of its class; `UNKNOWN` where it is of none of them.
        classes: names of the classes.
    """

    columns: ClassVar[tuple[str, ...]] = ("labels",)
    """Attributes with one entry per item: what :meth:`select` selects from."""

    kind: ClassVar[Kind]
    examples: ClassVar[str] = "examples"
    """What they are, in the plural, for messages."""

    labels: list[int]
    classes: tuple[str, ...]

    @property
    def fixed(self) -> bool:
        """Whether an item is the same each time it is read; not known of subclasses of others."""
        return type(self).__module__.partition(".")[0] == __name__.partition(".")[0]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Iterable[int]) -> Self:
        """The items at ``indices``, in their order."""
        chosen = list(indices)
        part = copy.copy(self)
        for name in self.columns:
            column = getattr(self, name)
            setattr(part, name, [column[index] for index in chosen])
        return part

    def join(self, others: Iterable[Self]) -> Self:
        """These items and then those of the others, which have the same classes."""
        whole = copy.copy(self)
        for name in self.columns:
            columns = [getattr(part, name) for part in (self, *others)]
            setattr(whole, name, [item for column in columns for item in column])
        return whole

    def split(self, fractions: Mapping[str, float], seed: int) -> dict[str, Self]:
        """Stratified parts by name; see `bella.data.split.stratified_split`."""
        parts = stratified_split(self.labels, fractions, seed)
        return {name: self.select(part) for name, part in parts.items()}

    def of_classes(self, classes: Sequence[str]) -> Self:
        """The items of these classes alone, numbered in this order.

        Raises:
            BellaError: a class is unknown, or given twice.
        """
        for name in classes:
            if name not in self.classes:
                raise BellaError(
                    f"There is no class {name!r} among the {len(self.classes)}: near are "
                    f"{nearest(name, self.classes)}."
                )
        if len(set(classes)) < len(classes):
            raise BellaError(f"The classes {', '.join(classes)} hold one twice: name each once.")
        number = {self.classes.index(name): place for place, name in enumerate(classes)}
        part = self.select(i for i, label in enumerate(self.labels) if label in number)
        part.labels = [number[label] for label in part.labels]
        part.classes = tuple(classes)
        return part

    def of_no_class(self, classes: Sequence[str]) -> Self:
        """The same items, none of which is of ``classes``: their labels are `UNKNOWN`."""
        part = copy.copy(self)
        part.labels = [UNKNOWN] * len(self)
        part.classes = tuple(classes)
        return part


class LabelledImages(Labelled):
    """Images with labels; item i is (tensor (3, height, width), label).

    Args:
        paths: image files.
        labels: for each file the index of its class.
        classes: names of the classes.
        preprocess: from a PIL image to a tensor.

    Attributes:
        skipped: an entry for each image that was left out because it cannot be read; the parts of
            a data set that was divided afterwards all have those of the whole.
    """

    columns: ClassVar[tuple[str, ...]] = ("paths", "labels")
    kind: ClassVar[Kind] = "image"
    examples: ClassVar[str] = "images"
    skipped: frozenset[tuple[int, int]] = frozenset()

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocess: Preprocess,
    ):
        self.paths = list(paths)
        self.labels = list(labels)
        self.classes = tuple(classes)
        self.preprocess = preprocess

    def image(self, index: int) -> Image.Image:
        """The picture itself, before preprocessing."""
        return load_image(self.paths[index])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.preprocess(self.image(index)), self.labels[index]

    @property
    def fixed(self) -> bool:
        """Whether an item is the same each time: one of `Labelled` without augmentation."""
        plain = isinstance(self.preprocess, Preprocess) and self.preprocess.augment is None
        return super().fixed and plain

    def without_bad(self, on_bad_image: OnBadImage = "skip") -> Self:
        """These without the images that cannot be read; see `readable`.

        Raises:
            BellaError: none can be read, or none of a class that had some.
        """
        good = readable(len(self), self.image, on_bad_image)
        if all(good):
            return self
        kept = self.select(i for i, is_good in enumerate(good) if is_good)
        lost = sorted(set(self.labels) - set(kept.labels))
        if lost:
            raise BellaError(
                f"None of the images of class {self.classes[lost[0]]!r} can be read: replace them."
            )
        reading = next(_READINGS)
        bad = ((reading, i) for i, is_good in enumerate(good) if not is_good)
        kept.skipped = self.skipped.union(bad)
        return kept

    def select(self, indices: Iterable[int], preprocess: Preprocess | None = None) -> Self:
        """The items at ``indices``, in their order, perhaps with another preprocessing."""
        part = super().select(indices)
        part.preprocess = preprocess or self.preprocess
        return part

    def split(self, fractions: Mapping[str, float], seed: int) -> dict[str, Self]:
        """Stratified parts by name; only the part called ``train`` keeps the augmentation.

        Raises:
            BellaError: the fractions are not positive or do not sum to 1.
        """
        parts = super().split(fractions, seed)
        for name, part in parts.items():
            if name != "train":
                part.preprocess = self.preprocess.plain()
        return parts


class ArrayImages(LabelledImages):
    """Images in memory, or in a file that is mapped into it.

    Args:
        images: uint8, each (height, width) or (height, width, 3).
        labels: for each image the index of its class.
        classes: names of the classes.
        preprocess: from a PIL image to a tensor.
    """

    columns: ClassVar[tuple[str, ...]] = ("images", "labels")

    def __init__(
        self,
        images: Iterable[np.ndarray],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocess: Preprocess,
    ):
        super().__init__([], labels, classes, preprocess)
        self.images = list(images)

    def image(self, index: int) -> Image.Image:
        """The picture itself, before preprocessing."""
        return Image.fromarray(np.ascontiguousarray(self.images[index]))


class ImageList(Dataset[Tensor]):
    """Images without labels, for prediction; item i is a tensor (3, height, width).

    Args:
        paths: image files, and folders whose images are taken at any depth, sorted.
        preprocess: from a PIL image to a tensor; augmentation is left out.
        on_bad_image: see `OnBadImage`.

    Raises:
        BellaError: there is no image.
    """

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        preprocess: Preprocess,
        on_bad_image: OnBadImage = "stop",
    ):
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        self.paths: list[Path] = []
        for path in map(Path, given):
            self.paths += images_in(path) if path.is_dir() else [path]
        if not self.paths:
            raise BellaError(
                f"There is no image in {', '.join(map(str, given)) or 'an empty list'}: give image "
                f"files ({', '.join(SUFFIXES)}) or folders that hold some."
            )
        good = readable(len(self.paths), lambda i: load_image(self.paths[i]), on_bad_image)
        self.paths = [path for path, is_good in zip(self.paths, good, strict=True) if is_good]
        self.preprocess = preprocess.plain()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(load_image(self.paths[index]))


def with_missing_parts(
    parts: Mapping[str, Some], fractions: Mapping[str, float], seed: int, name: str
) -> dict[str, Some]:
    """All parts of ``fractions``, in its order, and then the others: the missing ones are split off
    train by class, in proportion to their shares.

    Args:
        parts: what is there, ``train`` among it.
        fractions: the parts wanted and their shares; what is there keeps its size.
        seed: of the split.
        name: of the data, for messages.

    Raises:
        BellaError: there is one class alone, or a part would be without examples.
    """
    train = parts["train"]
    shares = {part: share for part, share in fractions.items() if part not in parts}
    shares |= {"train": fractions.get("train", 1.0)}
    whole = sum(shares.values())
    ordered = {part: shares[part] / whole for part in (*fractions, "train") if part in shares}
    found = dict(parts) | train.split(ordered, seed)
    if len(train.classes) < 2:
        raise BellaError(
            f"{name} holds {train.examples} of one class alone, {train.classes[0]!r}: give at "
            "least two."
        )
    empty = [part for part in fractions if not len(found[part])]
    if empty:
        raise BellaError(
            f"{name} has too few {train.examples} for the parts {', '.join(fractions)} (none is "
            f"left for {empty[0]}): give at least {len(shares)} {train.examples} of each class."
        )
    return {part: found[part] for part in dict.fromkeys((*fractions, *found))}
