"""Any data by one word: a data set's name, ``hf:NAME``, or the path of a folder or a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bella.data.domains import open_domains
from bella.data.folder import splits
from bella.data.hub import PREFIX, open_hub
from bella.data.images import Preprocess
from bella.data.labelled import Labelled, LabelledImages, OnBadImage
from bella.data.sets import SETS
from bella.data.sets.base import USUAL, at_most, refuse_unknown
from bella.errors import BellaError, nearest

LEFT_OUT = "left_out"
"""The part of the classes that were left out of all others."""


def open_data(
    data: str | Path,
    preprocess: Preprocess,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    classes: Sequence[str] = (),
    left_out: Sequence[str] = (),
    limit: int | None = None,
    train_domains: Sequence[str] = (),
    on_bad_image: OnBadImage = "stop",
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The parts of any data by name: train, validation, test, and the shifted ones after them.

    Args:
        data: a name of `bella.data.SETS`; ``hf:NAME`` (see `bella.data.hub.open_hub`); or a folder
            or a CSV file of your own images (see `bella.data.splits`).
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone. Texts
            have no use for it.
        seed: of what is split here.
        folder: where a set by name lies.
        classes: to keep, in this order; all by default.
        left_out: classes that no part holds but one of that name, made of the test examples of
            these classes: they are of none of the others, and ought to be noticed.
        limit: how many training examples to keep, in equal shares of each class (rounded).
        train_domains: of your own data with domains, those to train on; each other one is a shift
            (see `bella.data.open_domains`).
        on_bad_image: what to do at images that cannot be read, see `bella.data.open_images`.
        options: further ones of the set, by name: ``DataSet.options``.

    Returns:
        Parts of the same classes by name: `LabelledImages`, `LabelledTexts`, `Questions` or
        `ImageQuestions`. Examples whose class nobody knows have the label -1.

    Raises:
        BellaError: there are no such data, options or classes; files are missing or damaged.
        MissingExtraError: a package is needed and not installed.
    """
    if limit is not None and limit < 1:
        raise BellaError(f"limit={limit} must be a positive number of training examples.")
    name, asked = str(data), dict(options or {})
    if train_domains and (is_set(data, folder) or name.startswith(PREFIX)):
        raise BellaError(f"Domains to train on are for your own data: {name} has its own shifts.")
    if is_set(data, folder):
        dataset = SETS[name]
        refuse_unknown(dataset, asked)
        place = None if folder is None else Path(folder)
        if place is not None and not dataset.forms:
            raise BellaError(f"{dataset.title} comes with a package: leave out --folder {folder}.")
        parts = dataset.read(place, preprocess, seed, **asked)
        parts = {
            part: some.without_bad(on_bad_image) if isinstance(some, LabelledImages) else some
            for part, some in parts.items()
        }
    elif folder is not None:
        raise BellaError(
            f"--folder says where a data set by name lies, and {name!r} is none: choose "
            f"{nearest(name, SETS)}, or leave --folder out."
        )
    elif name.startswith(PREFIX):
        known = ("config", "image", "text", "label", "shifts")
        wrong = [option for option in asked if option not in known]
        if wrong:
            raise BellaError(
                f"{name} has no option {wrong[0]!r}: choose {nearest(wrong[0], known)}."
            )
        parts = open_hub(
            name.removeprefix(PREFIX), preprocess, seed, on_bad_image=on_bad_image, **asked
        )
    else:
        if asked:
            raise BellaError(
                f"{name} is your own data, which have no option {next(iter(asked))!r}."
            )
        if not Path(name).exists() and Path(name).name == name:
            raise BellaError(
                f"{name!r} is neither a data set nor a folder or CSV file here: `bella data` lists "
                f"the sets, near are {nearest(name, SETS)}."
            )
        if train_domains:
            parts = dict(
                open_domains(name, preprocess, train_domains, seed=seed, on_bad_image=on_bad_image)
            )
        else:
            parts = dict(splits(name, preprocess, seed=seed, on_bad_image=on_bad_image))
    parts = of_chosen_classes(parts, classes, left_out)
    if limit is not None and "train" in parts:
        parts["train"] = at_most(limit, parts["train"])
    return parts


def open_images_by_name(data: str, preprocess: Preprocess, **how: Any) -> dict[str, LabelledImages]:
    """The parts of any images by name; see `open_data`.

    Raises:
        BellaError: they are no images, or see `open_data`.
    """
    parts = open_data(data, preprocess, **how)
    kind = parts["train"].kind
    if kind != "image":
        raise BellaError(
            f"{data} holds examples of the kind {kind!r}, and images are trained on here: texts "
            "and questions train with --task text or multiple-choice; other kinds open with "
            "bella.data.open_data and train with bella.fit."
        )
    return parts


def preprocessed(
    parts: Mapping[str, LabelledImages], preprocess: Preprocess
) -> dict[str, LabelledImages]:
    """The same parts for another preprocessing; its augmentation applies to ``train`` alone."""
    return {
        name: part.select(range(len(part)), preprocess if name == "train" else preprocess.plain())
        for name, part in parts.items()
    }


def whole_name(data: str, folder: str | None) -> str:
    """Data by a word that means the same from every folder: a path is one from the root on.

    Raises:
        BellaError: see `is_set`.
    """
    if is_set(data, folder):
        return data
    rest = data.removeprefix(PREFIX)
    if rest == data:
        return str(Path(data).absolute())
    return f"{PREFIX}{Path(rest).absolute()}" if Path(rest).is_dir() else data


def is_set(data: str | Path, folder: str | Path | None = None) -> bool:
    """Whether data are the name of a set.

    Raises:
        BellaError: it is that of a folder or file here as well, and no ``folder`` is given.
    """
    if str(data) not in SETS or isinstance(data, Path):
        return False
    if folder is None and Path(data).exists():
        raise BellaError(
            f"{data} is a data set's name, and there is a folder or file of that name here: write "
            f"./{data} for your own, or --data {data} --folder {data} for the set in that folder."
        )
    return True


def of_chosen_classes(
    parts: Mapping[str, Labelled], classes: Sequence[str], left_out: Sequence[str]
) -> dict[str, Any]:
    """The same parts of the classes chosen; see `open_data`.

    Raises:
        BellaError: a class is unknown, chosen and left out, or fewer than two are left.
    """
    if not classes and not left_out:
        return dict(parts)
    known = next(iter(parts.values())).classes
    both = [name for name in left_out if name in classes]
    if both:
        raise BellaError(f"The class {both[0]!r} is chosen and left out: do one of the two.")
    kept = list(classes) or [name for name in known if name not in left_out]
    if len(kept) < 2:
        raise BellaError(f"{len(kept)} classes are left: keep two at least.")
    found: dict[str, Any] = {}
    for name, part in parts.items():
        nowhere = part.of_no_class(kept) if name not in USUAL and not any_known(part) else None
        found[name] = part.of_classes(kept) if nowhere is None else nowhere
    if left_out:
        found[LEFT_OUT] = parts["test"].of_classes(list(left_out)).of_no_class(kept)
    empty = [name for name in found if not len(found[name])]
    if empty:
        raise BellaError(f"The part {empty[0]} has no example of these classes: choose others.")
    return found


def any_known(part: Labelled) -> bool:
    """Whether a part has examples whose class is known."""
    return any(label >= 0 for label in part.labels)


def shifts_of(parts: Mapping[str, Any]) -> list[str]:
    """The parts that are shifted: all beside train, validation and test."""
    return [name for name in parts if name not in USUAL]
