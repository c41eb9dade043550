"""DomainNet: 586,575 pictures of 345 things in six domains: photographs, paintings, sketches, ...

Train on photographs (``real``), test on them and on the other domains. The lists are the author's:
``real_train.txt`` and ``real_test.txt`` hold a line ``real/zebra/real_344_000001.jpg 344`` each.

Source: Peng et al., Moment matching for multi-source domain adaptation, ICCV 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages
from bella.data.sets.base import DataSet, with_validation
from bella.errors import BellaError, nearest
from bella.files import read_bytes

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
COUNTS = {
    "clipart": (33_525, 14_604),
    "infograph": (36_023, 15_582),
    "painting": (50_416, 21_850),
    "quickdraw": (120_750, 51_750),
    "real": (120_906, 52_041),
    "sketch": (48_212, 20_916),
}
"""Lines of the lists of training and test images."""
PICTURES = "*/*/*.*g"
"""Images in the folders of domains and classes: jpg and png."""

Listed = tuple[list[Path], list[int], dict[int, str]]


def _lists(root: Path) -> Path:
    """The folder of the lists: the images' own, or one in it."""
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir() and p.name not in DOMAINS)]
    return next((p for p in places if any(p.glob("*_test.txt"))), root)


def _listed(root: Path, domain: str, part: str) -> Listed:
    """The images of a list, their labels, and the names of these.

    Raises:
        BellaError: the list is missing or damaged, or images that it names are.
    """
    path = _lists(root) / f"{domain}_{part}.txt"
    if not path.is_file():
        raise BellaError(f"The list {path} is missing. {DOMAINNET.get()}")
    paths: list[Path] = []
    labels: list[int] = []
    names: dict[int, str] = {}
    for line, text in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        name, _, label = text.strip().rpartition(" ")
        if not text.strip():
            continue
        if not label.isdecimal() or len(Path(name).parts) < 3 or ".." in Path(name).parts:
            raise DOMAINNET.damaged(path, f"line {line}: {text[:80]!r}")
        kind = Path(name).parts[-2]
        if names.setdefault(int(label), kind) != kind:
            raise DOMAINNET.damaged(path, f"{label} stands for {names[int(label)]} and for {kind}")
        paths.append(root / name)
        labels.append(int(label))
    if not paths:
        raise DOMAINNET.damaged(path, "it is empty")
    there = {
        place: {p.name for p in place.iterdir()} if place.is_dir() else set()
        for place in {p.parent for p in paths}
    }
    missing = [p for p in paths if p.name not in there[p.parent]]
    if missing:
        raise BellaError(
            f"{len(missing):,} of the {len(paths):,} images in {path} are missing, the first is "
            f"{missing[0]}. {DOMAINNET.get()}"
        )
    wanted = COUNTS[domain][part == "test"]
    DOMAINNET.expect(len(paths), wanted, f"{domain} {part} images", root)
    return paths, labels, names


def domainnet(
    folder: Path | None,
    preprocess: Preprocess,
    seed: int = 0,
    *,
    domain: str = "real",
    shifts: Sequence[str] = (),
) -> dict[str, Any]:
    """The parts of one domain, and the test images of each other domain as a part of its name.

    Args:
        folder: holds the six folders of images and the lists.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of what is held out for validation.
        domain: to train on.
        shifts: the other domains; all whose lists are there by default.

    Raises:
        BellaError: there is no such domain, or files are missing or damaged.
    """
    for name in (domain, *shifts):
        if name not in DOMAINS:
            raise BellaError(f"{name!r} is no domain: choose {nearest(name, DOMAINS, 6)}.")
    _, root = DOMAINNET.found(folder)
    wanted = list(shifts) or [
        name for name in DOMAINS if name != domain and (_lists(root) / f"{name}_test.txt").is_file()
    ]
    listed = {"train": _listed(root, domain, "train"), "test": _listed(root, domain, "test")}
    listed |= {name: _listed(root, name, "test") for name in wanted}
    names = listed["train"][2]
    order = {label: place for place, label in enumerate(sorted(names))}
    parts: dict[str, Any] = {}
    for part, (paths, labels, kinds) in listed.items():
        unknown = Counter(label for label in labels if kinds[label] != names.get(label))
        if unknown:
            raise DOMAINNET.damaged(
                _lists(root), f"{part} has the class {kinds[next(iter(unknown))]}, train has not"
            )
        parts[part] = LabelledImages(
            paths,
            [order[label] for label in labels],
            [names[label] for label in sorted(names)],
            preprocess if part == "train" else preprocess.plain(),
        )
    return with_validation(parts.pop("train"), seed) | parts


DOMAINNET = DataSet(
    "domainnet",
    "DomainNet",
    "image",
    "586,575 pictures of 345 classes in six domains",
    {
        "train": "nine tenths of the training list of a domain, real by default",
        "validation": "the other tenth, drawn by class",
        "test": "the test list of that domain",
        "DOMAIN": "the test list of each other domain: clipart, infograph, painting, ...",
    },
    "http://ai.bu.edu/M3SDA, a zip file and two lists a domain (the cleaned version); real alone "
    "has 172,947 images",
    "Peng et al., Moment matching for multi-source domain adaptation, ICCV 2019",
    domainnet,
    {
        "lists": ("*_train.txt", "*_test.txt", PICTURES),
        "lists in a folder": ("*/*_train.txt", "*/*_test.txt", PICTURES),
    },
)
