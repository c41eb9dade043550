"""A user's own domains: train on some, and be tried on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bella.data.folder import ImageFolder, subfolders
from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages, OnBadImage, with_missing_parts
from bella.data.split import FRACTIONS
from bella.data.table import ImageTable, domains_in
from bella.errors import BellaError, nearest


def open_domains(
    path: str | Path,
    preprocess: Preprocess,
    train: Sequence[str],
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
    on_bad_image: OnBadImage = "stop",
) -> dict[str, LabelledImages]:
    """The parts of data with domains: of the training domains, and each other domain by its name.

    Args:
        path: a folder with one sub-folder a domain, and in it one a class; or a CSV file with a
            column called domain, site or environment.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        train: domains whose images are split into the parts of ``fractions``.
        seed: of the split.
        fractions: names and shares of those parts.
        on_bad_image: see `bella.data.open_images`.

    Raises:
        BellaError: a domain is unknown, is called like a part, or has a class that no training
            domain has; nothing is left to be tried on; or see `bella.data.open_images`.
    """
    root = Path(path)
    if root.is_dir():
        domains = _of_folder(root, preprocess, train)
    elif root.suffix.lower() == ".csv" and root.is_file():
        domains = _of_table(root, preprocess, train)
    else:
        raise BellaError(
            f"{path} is neither a folder nor a CSV file: give a folder with one sub-folder per "
            "domain and in it one per class, or a CSV file of path,label,domain."
        )
    called = [name for name in domains if name in fractions]
    if called:
        raise BellaError(f"A domain of {path} is called {called[0]!r}, which is a part: rename it.")
    if not set(domains) - set(train):
        raise BellaError(
            f"All domains of {path} ({', '.join(domains)}) are trained on: leave one out."
        )
    domains = {name: images.without_bad(on_bad_image) for name, images in domains.items()}
    first, *others = (domains.pop(name) for name in dict.fromkeys(train))
    plain = {
        name: images.select(range(len(images)), preprocess.plain())
        for name, images in domains.items()
    }
    return with_missing_parts({"train": first.join(others)}, fractions, seed, str(path)) | plain


def _known(path: Path, train: Sequence[str], names: Sequence[str]) -> None:
    for name in train:
        if name not in names:
            raise BellaError(f"{path} has no domain {name!r}: near are {nearest(name, names)}.")
    if not train:
        raise BellaError(f"Name a domain of {path} to train on: {', '.join(names)}.")


def _of_folder(
    root: Path, preprocess: Preprocess, train: Sequence[str]
) -> dict[str, LabelledImages]:
    folders = {folder.name: folder for folder in subfolders(root)}
    _known(root, train, list(folders))
    classes = sorted({kind.name for name in train for kind in subfolders(folders[name])})
    return {name: ImageFolder(folder, preprocess, classes) for name, folder in folders.items()}


def _of_table(
    root: Path, preprocess: Preprocess, train: Sequence[str]
) -> dict[str, LabelledImages]:
    images, told = ImageTable(root, preprocess), domains_in(root)
    names = sorted(set(told))
    _known(root, train, names)
    seen = {images.labels[i] for i, name in enumerate(told) if name in train}
    classes = [images.classes[label] for label in sorted(seen)]
    found = {}
    for name in names:
        rows = [i for i, own in enumerate(told) if own == name]
        foreign = {images.classes[images.labels[i]] for i in rows} - set(classes)
        if foreign:
            raise BellaError(
                f"The domain {name!r} of {root} has the class {min(foreign)!r}, which no training "
                f"domain has: take its images away, or train on a domain that has it."
            )
        part = images.select(rows)
        labels = [classes.index(images.classes[label]) for label in part.labels]
        found[name] = LabelledImages(part.paths, labels, classes, preprocess)
    return found
