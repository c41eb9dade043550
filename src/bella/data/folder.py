"""A user's own images: a folder per class, a CSV file, or a folder with train, val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bella.data.images import Preprocess
from bella.data.labelled import SUFFIXES, ImageList, LabelledImages, is_image
from bella.data.split import FRACTIONS
from bella.data.table import ImageTable
from bella.errors import BellaError, nearest

__all__ = ["ImageFolder", "ImageList", "ImageTable", "open_images", "splits"]

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
"""Parts of a data set, and the folders that they may stand in."""


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


class ImageFolder(LabelledImages):
    """Images in one sub-folder per class.

    Args:
        root: the folder that holds the classes' folders.
        preprocess: from a PIL image to a tensor.
        classes: names of the classes; without them, the sub-folders' names, sorted.

    Raises:
        BellaError: there is no such folder, it holds no class folders, one of them is empty, or one
            is unknown to ``classes``.
    """

    def __init__(
        self, root: str | Path, preprocess: Preprocess, classes: Sequence[str] | None = None
    ):
        root = Path(root)
        if not root.is_dir():
            raise BellaError(f"There is no folder {root}: check the path.")
        folders = _folders(root)
        if not folders:
            raise BellaError(
                f"{root} holds {sum(map(is_image, root.iterdir()))} images and no class folders: "
                "put the images of each class in a sub-folder with the class's name."
            )
        known = tuple(classes) if classes is not None else tuple(f.name for f in folders)
        paths: list[Path] = []
        labels: list[int] = []
        for folder in folders:
            if folder.name not in known:
                raise BellaError(
                    f"{folder} is a folder of none of the {len(known)} classes: near are "
                    f"{nearest(folder.name, known)}."
                )
            images = sorted(filter(is_image, folder.iterdir()))
            if not images:
                raise BellaError(
                    f"The class folder {folder} holds no images ({', '.join(SUFFIXES)}): "
                    "fill it or take it away."
                )
            paths += images
            labels += [known.index(folder.name)] * len(images)
        super().__init__(paths, labels, known, preprocess)


def open_images(
    path: str | Path, preprocess: Preprocess, classes: Sequence[str] | None = None
) -> LabelledImages:
    """Labelled images from a folder of class folders, or from a CSV file.

    Raises:
        BellaError: ``path`` is neither, or what it holds is not right.
    """
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path, preprocess, classes)
    if path.suffix.lower() == ".csv" and path.is_file():
        return ImageTable(path, preprocess, classes)
    raise BellaError(
        f"{path} is neither a folder nor a CSV file: give a folder with one sub-folder per class, "
        "or a CSV file of path,label."
    )


def splits(
    path: str | Path,
    preprocess: Preprocess,
    classes: Sequence[str] | None = None,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
) -> dict[str, LabelledImages]:
    """The parts of a data set by name: those that stand in folders, the others split off train.

    A folder counts as divided when its ``train`` folder holds class folders; ``val``, ``valid`` or
    ``validation`` and ``test`` beside it are the other parts, with train's classes. A part of
    ``fractions`` without a folder is taken out of train by a stratified split. Only train is
    augmented.

    Args:
        path: a folder or a CSV file; see :func:`open_images`.
        preprocess: from a PIL image to a tensor.
        classes: names of the classes; without them, those of train.
        fractions: the parts wanted, ``train`` among them, and their shares.
        seed: of the split.

    Raises:
        BellaError: see :func:`open_images`; ``fractions`` lacks ``train``; or there is one class
            alone, or a part without images.
    """
    if "train" not in fractions:
        raise BellaError(f"The fractions {dict(fractions)} must name a part 'train'.")
    root = Path(path)
    folders = {
        part: root / name for part in PARTS for name in PARTS[part] if (root / name).is_dir()
    }
    if "train" not in folders or not _folders(folders["train"]):
        folders = {"train": root}
    train = open_images(folders.pop("train"), preprocess, classes)
    parts = {
        part: open_images(folder, preprocess.plain(), train.classes)
        for part, folder in folders.items()
    }
    shares = {part: share for part, share in fractions.items() if part not in parts}
    whole = sum(shares.values())
    parts |= train.split({part: share / whole for part, share in shares.items()}, seed)
    if len(train.classes) < 2:
        raise BellaError(
            f"{path} holds images of one class alone, {train.classes[0]!r}: give at least two."
        )
    empty = [part for part in fractions if not len(parts[part])]
    if empty:
        raise BellaError(
            f"{path} has too few images for the parts {', '.join(fractions)} (none is left for "
            f"{empty[0]}): give at least {len(shares)} images of each class."
        )
    return {part: parts[part] for part in fractions}
