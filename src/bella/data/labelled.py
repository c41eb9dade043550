"""Image data sets: files with labels, and files without."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bella.data.images import Preprocess, load_image
from bella.data.split import stratified_split
from bella.errors import BellaError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Endings of the files that count as images, in either case."""


def is_image(path: Path) -> bool:
    """Whether ``path`` is named like an image; hidden files are not (``._a.jpg`` of an archive)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images with labels; item i is (tensor (3, height, width), label).

    Args:
        paths: image files.
        labels: for each file the index of its class.
        classes: names of the classes.
        preprocess: from a PIL image to a tensor.
    """

    columns: ClassVar[tuple[str, ...]] = ("paths", "labels")
    """Attributes with one entry per item: what :meth:`select` selects from."""

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

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The picture itself, before preprocessing."""
        return load_image(self.paths[index])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocess(self.image(index)), self.labels[index]

    @property
    def fixed(self) -> bool:
        """Whether an item is the same each time it is read; not known of subclasses of others."""
        own = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]
        return own and isinstance(self.preprocess, Preprocess) and self.preprocess.augment is None

    def select(self, indices: Iterable[int], preprocess: Preprocess | None = None) -> Self:
        """The items at ``indices``, in their order, perhaps with another preprocessing."""
        chosen = list(indices)
        part = copy.copy(self)
        for name in self.columns:
            column = getattr(self, name)
            setattr(part, name, [column[index] for index in chosen])
        part.preprocess = preprocess or self.preprocess
        return part

    def join(self, others: Iterable[Self]) -> Self:
        """These items and then those of the others, which have the same classes."""
        whole = copy.copy(self)
        for name in self.columns:
            columns = [getattr(part, name) for part in (self, *others)]
            setattr(whole, name, [item for column in columns for item in column])
        return whole

    def split(self, fractions: Mapping[str, float], seed: int) -> dict[str, Self]:
        """Stratified parts by name; only the part called ``train`` keeps the augmentation.

        Raises:
            BellaError: the fractions are not positive or do not sum to 1.
        """
        return {
            name: self.select(part, self.preprocess if name == "train" else self.preprocess.plain())
            for name, part in stratified_split(self.labels, fractions, seed).items()
        }


class ImageList(Dataset[Tensor]):
    """Images without labels, for prediction; item i is a tensor (3, height, width).

    Args:
        paths: image files, and folders whose images are taken at any depth, sorted.
        preprocess: from a PIL image to a tensor; augmentation is left out.

    Raises:
        BellaError: there is no image.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path], preprocess: Preprocess):
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        self.paths: list[Path] = []
        for path in map(Path, given):
            self.paths += sorted(filter(is_image, path.rglob("*"))) if path.is_dir() else [path]
        if not self.paths:
            raise BellaError(
                f"There is no image in {', '.join(map(str, given)) or 'an empty list'}: give image "
                f"files ({', '.join(SUFFIXES)}) or folders that hold some."
            )
        self.preprocess = preprocess.plain()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(load_image(self.paths[index]))
