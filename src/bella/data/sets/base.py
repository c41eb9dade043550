"""What a data set known by its name is: a few words about it, the files it is made of, a reader."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bella.data.labelled import Kind, Labelled
from bella.data.split import stratified_split
from bella.errors import BellaError, MissingExtraError, nearest

USUAL = ("train", "validation", "test")
"""The parts that training and its judgement need; all others are shifts."""

TENTH = {"train": 0.9, "validation": 0.1}
"""Shares of a training part whose set has a test part and no validation part."""

ARCHIVES = (".tar", ".gz", ".tgz", ".zip", ".xz", ".bz2", ".7z", ".rar")

Some = TypeVar("Some", bound=Labelled)


@dataclass(frozen=True)
class DataSet:
    """A data set that is known by its name.

    Attributes:
        name: what it is called on the command line.
        title: for people.
        kind: what its examples are.
        about: how many examples of how many classes, in words.
        parts: its parts and what they are; those beside train, validation and test are shifts.
        place: where to get it, and how large it is.
        source: the paper, and the licence where it is known.
        read: from a folder, a preprocessing and a seed to the parts; its further arguments, which
            are given by name, are the set's own options.
        forms: the forms in which it lies on disk, each with the files (or, with a slash at the
            end, the folders) that tell it; none where a package brings it.
    """

    name: str
    title: str
    kind: Kind
    about: str
    parts: Mapping[str, str]
    place: str
    source: str
    read: Callable[..., dict[str, Any]]
    forms: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The set's own options and their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.read).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    def found(self, folder: Path | None) -> tuple[str, Path]:
        """The form that lies in a folder, or in a folder in it, and where.

        Raises:
            BellaError: there is none, or a part of one alone; the sentence says what is missing.
        """
        if folder is None:
            raise BellaError(f"{self.title} is read from a folder: give --folder. {self.get()}")
        if not folder.is_dir():
            raise BellaError(f"There is no folder {folder}: check the path. {self.get()}")
        best: tuple[int, str, Path, list[str]] = (0, "", folder, [])
        for root in [folder, *_folders(folder)]:
            for form, files in self.forms.items():
                missing = [name for name in files if not _is_there(root, name)]
                if not missing:
                    return form, root
                best = max(best, (len(files) - len(missing), form, root, missing), key=_most)
        there, form, root, missing = best
        packed = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in ARCHIVES)
        unpack = f" Unpack {', '.join(packed[:3])} first." if packed else ""
        if there:
            raise BellaError(
                f"{root} holds a part of {self.title} ({form}): {_few(missing)} missing.{unpack} "
                f"{self.get()}"
            )
        forms = "; ".join(f"{form}: {_few(files)}" for form, files in self.forms.items())
        raise BellaError(f"{folder} does not hold {self.title} ({forms}).{unpack} {self.get()}")

    def get(self) -> str:
        """Where to get it, as a sentence."""
        return f"Get it: {self.place}."

    def expect(self, found: int, wanted: int, what: str, place: Path) -> None:
        """Warn where a copy has other than the published number of examples."""
        if found != wanted:
            warnings.warn(
                f"{place} holds {found:,} {what} and the published {self.title} {wanted:,}: "
                f"a part of it, or a choice of your own. {self.get()}",
                stacklevel=3,
            )

    def damaged(self, path: Path, why: str) -> BellaError:
        """That a file is not what it should be."""
        return BellaError(f"{path} is damaged, or not whole ({why}). {self.get()}")


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_there(root: Path, name: str) -> bool:
    """Whether a file, or a folder where the name ends in a slash, is there; ``*`` stands for any
    letters."""
    if "*" in name:
        return any(root.glob(name))
    return (root / name).is_dir() if name.endswith("/") else (root / name).is_file()


def _most(candidate: tuple[int, str, Path, list[str]]) -> int:
    return candidate[0]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def folder_of(package: str, dataset: DataSet) -> Path:
    """The folder of an installed package, none of whose code is run.

    Raises:
        MissingExtraError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"{dataset.title} comes with the package {package}, which is not installed. "
            f"{dataset.get()}"
        )
    return Path(spec.submodule_search_locations[0])


def with_validation(train: Some, seed: int) -> dict[str, Some]:
    """A training part with a tenth of it held out, by class; only train keeps its augmentation."""
    return train.split(TENTH, seed)


def at_most(count: int, examples: Some) -> Some:
    """A choice of so many examples, in equal shares of each class (rounded), the same each time;
    all if there are fewer."""
    share = count / max(len(examples), 1)
    if share >= 1:
        return examples
    shares = {"in": share, "out": 1 - share}
    return examples.select(stratified_split(examples.labels, shares, 0)["in"])


def refuse_unknown(dataset: DataSet, options: Mapping[str, Any]) -> None:
    """Refuse options that a set does not have.

    Raises:
        BellaError: there is one.
    """
    for name in options:
        if name not in dataset.options:
            known = nearest(name, dataset.options) if dataset.options else "none"
            raise BellaError(
                f"{dataset.title} has no option {name!r}: its own are {known}; classes, left_out, "
                "limit, folder and seed are given beside them."
            )
