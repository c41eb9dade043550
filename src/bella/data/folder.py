"""A user's own images: a folder per class, a CSV file, or a folder with train, val and test."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bella.data.images import Preprocess
from bella.data.labelled import (
    SUFFIXES,
    ImageList,
    LabelledImages,
    OnBadImage,
    images_in,
    is_image,
    with_missing_parts,
)
from bella.data.split import FRACTIONS
from bella.data.table import PARTS, ImageTable, encode
from bella.errors import BellaError, nearest

__all__ = ["ImageFolder", "ImageList", "ImageTable", "open_images", "open_other", "splits"]

LIKE_PARTS = {name for names in PARTS.values() for name in names} | {
    "training",
    "dev",
    "eval",
    "testing",
}
"""What other people call parts, in small letters."""


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


class ImageFolder(LabelledImages):
    """Images in one sub-folder per class, at any depth within it.

    What is left out (hidden files and folders, files not named like an image) is counted in a
    warning. Folders that all hold the same folders are warned of as well: they may be domains.

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
        folders = subfolders(root)
        if not folders:
            raise BellaError(
                f"{root} holds {sum(map(is_image, root.iterdir()))} images and no class folders: "
                "put the images of each class in a sub-folder with the class's name."
            )
        if classes is None:
            _warn_of_domains(root, folders)
        known = tuple(classes) if classes is not None else tuple(f.name for f in folders)
        paths: list[Path] = []
        labels: list[int] = []
        for folder in folders:
            if folder.name not in known:
                raise BellaError(
                    f"{folder} is a folder of none of the {len(known)} classes: near are "
                    f"{nearest(folder.name, known)}."
                )
            images = images_in(folder)
            if not images:
                raise BellaError(
                    f"The class folder {folder} holds no images ({', '.join(SUFFIXES)}): "
                    "fill it or take it away."
                )
            paths += images
            labels += [known.index(folder.name)] * len(images)
        super().__init__(paths, labels, known, preprocess)


def _warn_of_domains(root: Path, folders: Sequence[Path]) -> None:
    """Say so where class folders look like domains, each with the same classes in it."""
    inside = [{kind.name for kind in subfolders(folder)} for folder in folders]
    if len(folders) > 1 and len(inside[0]) > 1 and all(names == inside[0] for names in inside):
        warnings.warn(
            f"The folders of {root} ({_some(f.name for f in folders)}) are taken for its classes, "
            f"and each holds the same folders ({_some(sorted(inside[0]))}): if they are domains, "
            f"such as sites or cameras, say which to train on (train_domains=, --train-domains "
            f"{folders[0].name}).",
            stacklevel=4,
        )


def _some(names: Iterable[str], most: int = 5) -> str:
    """A few of them."""
    listed = list(names)
    return ", ".join([*listed[:most], *(["..."] if len(listed) > most else [])])


def open_images(
    path: str | Path,
    preprocess: Preprocess,
    classes: Sequence[str] | None = None,
    *,
    on_bad_image: OnBadImage = "stop",
) -> LabelledImages:
    """Labelled images from a folder of class folders, or from a CSV file.

    Args:
        path: the folder or file.
        preprocess: from a PIL image to a tensor.
        classes: names of the classes; without them, those that occur, sorted.
        on_bad_image: ``stop`` at the first image that cannot be read when it is met, or read all
            now, ``skip`` those and say how many they are.

    Raises:
        BellaError: ``path`` is neither, or what it holds is not right.
    """
    images = _opened(Path(path), preprocess, classes, on_bad_image)
    found = sorted({part for part in getattr(images, "parts", ()) if part})
    if len(found) > 1:
        warnings.warn(
            f"{path} holds several parts ({', '.join(found)}), and all of its images are taken.",
            stacklevel=2,
        )
    return images


def open_other(
    path: str | Path,
    preprocess: Preprocess,
    classes: Sequence[str],
    *,
    on_bad_image: OnBadImage = "stop",
) -> LabelledImages:
    """Images of another kind than a network was trained on: shifted ones, or foreign ones.

    They have their labels where all of them are of ``classes``: class folders by their names, a CSV
    file by its column. Where one is not, all images have the label -1, which no class has; what is
    right there is then not counted.

    Args:
        path: a folder of images at any depth, or a CSV file of path,label.
        preprocess: from a PIL image to a tensor.
        classes: names of the network's classes.
        on_bad_image: see :func:`open_images`.

    Raises:
        BellaError: ``path`` is neither, or holds no image.
    """
    root = Path(path)
    if root.suffix.lower() == ".csv" and root.is_file():
        own = ImageTable(root, preprocess)
        try:
            labels = encode(root, [own.classes[label] for label in own.labels], classes)
        except BellaError:
            labels = [-1] * len(own)
        return LabelledImages(own.paths, labels, classes, preprocess).without_bad(on_bad_image)
    if not root.is_dir():
        raise BellaError(
            f"{path} is neither a folder nor a CSV file: give a folder of images, or a CSV file of "
            "path,label."
        )
    found = subfolders(root)
    if found and all(folder.name in classes for folder in found):
        return ImageFolder(root, preprocess, classes).without_bad(on_bad_image)
    paths = ImageList(root, preprocess, on_bad_image).paths
    return LabelledImages(paths, [-1] * len(paths), classes, preprocess)


def _opened(
    path: Path, preprocess: Preprocess, classes: Sequence[str] | None, on_bad_image: OnBadImage
) -> LabelledImages:
    if path.is_dir():
        return ImageFolder(path, preprocess, classes).without_bad(on_bad_image)
    if path.suffix.lower() == ".csv" and path.is_file():
        return ImageTable(path, preprocess, classes).without_bad(on_bad_image)
    raise BellaError(
        f"{path} is neither a folder nor a CSV file: give a folder with one sub-folder per class, "
        "or a CSV file of path,label."
    )


def _parts(root: Path) -> dict[str, Path]:
    """The folders of the parts; the root itself as train where it is not divided.

    Raises:
        BellaError: there are two folders for one part, parts are called otherwise, or it cannot be
            told whether train is a part or a class.
    """
    if not root.is_dir():
        return {"train": root}
    here = [folder.name for folder in subfolders(root)]
    if "train" not in here or not subfolders(root / "train"):
        like = [name for name in here if name.casefold() in LIKE_PARTS]
        if any(subfolders(root / name) for name in like) or (like == here and len(like) > 1):
            raise BellaError(
                f"{root} holds {', '.join(like)}, which look like the parts of a data set: call "
                "them train, val and test, with one folder a class in each."
            )
        return {"train": root}
    folders: dict[str, Path] = {}
    for part, names in PARTS.items():
        there = [name for name in names if (root / name).is_dir()]
        if len(there) > 1:
            raise BellaError(
                f"{root} holds {' and '.join(there)}, which are the same part: keep one of them."
            )
        if there:
            folders[part] = root / there[0]
    beside = [folder.name for folder in subfolders(root) if folder not in folders.values()]
    if beside and len(folders) == 1:
        raise BellaError(
            f"In {root} stand {', '.join(beside[:3])} beside train, which holds folders itself: is "
            "train a class or the training part? Rename it, or give train's own path."
        )
    if beside:
        warnings.warn(
            f"{root}: {', '.join(beside[:3])} beside the parts {', '.join(folders)}: left out.",
            stacklevel=3,
        )
    return folders


def splits(
    path: str | Path,
    preprocess: Preprocess,
    classes: Sequence[str] | None = None,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    on_bad_image: OnBadImage = "stop",
) -> dict[str, LabelledImages]:
    """The parts of a data set by name: those that stand in folders, the others split off train.

    A folder counts as divided when its ``train`` folder holds class folders; ``val``, ``valid`` or
    ``validation`` and ``test`` beside it are the other parts, with train's classes. A part of
    ``fractions`` without a folder is taken out of train by a stratified split. Only train is
    augmented. The lines of a CSV file with a column called split belong to the parts that it names.

    Args:
        path: a folder or a CSV file; see :func:`open_images`.
        preprocess: from a PIL image to a tensor.
        classes: names of the classes; without them, those of train.
        fractions: the parts wanted, ``train`` among them, and their shares.
        seed: of the split.
        on_bad_image: see :func:`open_images`.

    Raises:
        BellaError: see :func:`open_images`; ``fractions`` lacks ``train``; there is one class
            alone, or a part without images; or what the folders are cannot be told: two for one
            part, or a class that is called train.
    """
    if "train" not in fractions:
        raise BellaError(f"The fractions {dict(fractions)} must name a part 'train'.")
    root = Path(path)
    folders = _parts(root)
    train = _opened(folders.pop("train"), preprocess, classes, on_bad_image)
    parts = {
        part: _opened(folder, preprocess.plain(), train.classes, on_bad_image)
        for part, folder in folders.items()
    }
    if isinstance(train, ImageTable) and any(train.parts):
        told = {part: [i for i, p in enumerate(train.parts) if p == part] for part in PARTS}
        if not told["train"]:
            raise BellaError(f"{path} has a column of parts and no line of train: add some.")
        parts = {
            part: train.select(rows, preprocess.plain())
            for part, rows in told.items()
            if rows and part != "train"
        }
        train = train.select(told["train"])
    return with_missing_parts({"train": train, **parts}, fractions, seed, str(path))
