"""Data of Hugging Face's ``datasets``: by name from a hub, or copies on disk.

A copy is what ``save_to_disk`` leaves, or a folder of parquet, CSV or JSON lines. Nothing of a data
set's own code is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from bella.data.images import Preprocess, load_image
from bella.data.labelled import (
    UNKNOWN,
    Labelled,
    LabelledImages,
    OnBadImage,
    with_missing_parts,
)
from bella.data.split import FRACTIONS
from bella.data.table import PARTS
from bella.data.written import LabelledTexts
from bella.errors import BellaError, nearest, require
from bella.files import shortened

PREFIX = "hf:"
LABELS = ("label", "labels", "class", "target", "fine_label", "category")
"""What a column of labels may be called, the likelier first."""
TEXTS = ("text", "sentence", "content", "review", "question")
"""What a column of texts may be called, the likelier first."""
OTHERS = {"validation": ("dev", "eval", "validation_matched"), "train": ("training",)}
"""What parts are called on the hub, beside `bella.data.table.PARTS`."""


class HubImages(LabelledImages):
    """Images of a Hugging Face data set, which decodes them as they are read.

    Args:
        source: the data set, whose images are not decoded by itself.
        column: of the images.
        labels: for each the index of its class.
        classes: names of the classes.
        preprocess: from a PIL image to a tensor.
    """

    # An image is known by its place in data that have a fingerprint of their own.
    columns: ClassVar[tuple[str, ...]] = ("places", "labels")

    def __init__(
        self,
        source: Any,
        column: str,
        labels: Sequence[int],
        classes: Sequence[str],
        preprocess: Preprocess,
    ):
        super().__init__([], labels, classes, preprocess)
        self.source = source
        self.column = column
        self.places = [(source._fingerprint, row) for row in range(len(labels))]

    def image(self, index: int) -> Image.Image:
        """The picture itself, before preprocessing."""
        row = self.places[index][1]
        found = self.source[row][self.column] or {}
        name = found.get("path") or f"row {row} of {self.column}"
        return load_image(name, found.get("bytes"))


def open_hub(
    name: str,
    preprocess: Preprocess,
    seed: int = 0,
    *,
    config: str | None = None,
    image: str | None = None,
    text: str | None = None,
    label: str | None = None,
    shifts: Sequence[str] = (),
    fractions: Mapping[str, float] = FRACTIONS,
    on_bad_image: OnBadImage = "stop",
) -> dict[str, Any]:
    """The parts of a Hugging Face data set: `HubImages`, or `LabelledTexts`.

    Train, validation and test are taken where they are, and the missing ones are split off train.

    Args:
        name: of a data set on the hub, or a folder with a copy.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of what is split off.
        config: which of a data set's configurations.
        image: the column of images, where there are several.
        text: the column of texts, where there are several.
        label: the column of labels, where its name does not tell it.
        shifts: further parts to take, as shifted data.
        fractions: the parts wanted and their shares.
        on_bad_image: see `bella.data.open_images`.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        BellaError: there is no such data set, or its columns cannot be told.
    """
    loaded = load_all(name, config)
    parts: dict[str, Any] = {}
    kept = dict.fromkeys(shifts)
    for wanted, names in PARTS.items():
        there = [n for n in (*names, *OTHERS.get(wanted, ())) if n in loaded and n not in kept]
        if there:
            parts[wanted] = loaded[there[0]]
            kept[there[0]] = None
    for shift in shifts:
        if shift not in loaded:
            raise BellaError(f"{name} has no part {shift!r}: its are {nearest(shift, loaded)}.")
        parts[shift] = loaded[shift]
    left = [part for part in loaded if part not in kept]
    if left:
        warnings.warn(
            f"{name}: the parts {', '.join(left)} are left out; take them by shifts=[...].",
            stacklevel=2,
        )
    if "train" not in parts:
        raise BellaError(f"{name} has no part train: its parts are {', '.join(loaded)}.")
    return _with_columns(
        name, parts, preprocess, seed, (image, text, label), fractions, on_bad_image
    )


def of_parquet(
    files: Mapping[str, Sequence[Path]], preprocess: Preprocess, *, label: str
) -> dict[str, Any]:
    """The parts that lie in parquet files, as the hub has them; only train is augmented.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        BellaError: a file cannot be read, or has no such columns.
    """
    named = {part: [str(file) for file in some] for part, some in files.items()}
    place = str(next(iter(files.values()))[0].parent)
    loaded = _load(place, "parquet", data_files=named)
    return _with_columns(place, dict(loaded), preprocess, 0, (None, None, label), {}, "stop")


def load_all(name: str, config: str | None) -> dict[str, Any]:
    """All parts of a data set, by their own names."""
    path = Path(name)
    if path.is_dir() and any((path / f).is_file() for f in ("dataset_dict.json", "state.json")):
        datasets = require("datasets", extra="hf")
        try:
            loaded = datasets.load_from_disk(name)
        except Exception as error:  # arrow and datasets have errors of their own
            raise BellaError(
                f"{name} cannot be read as what save_to_disk leaves ({shortened(error)})."
            ) from error
    else:
        loaded = _load(name, name, config)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _load(name: str, *args: Any, **options: Any) -> Any:
    datasets = require("datasets", extra="hf")
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # of the network, the hub, arrow, pandas and datasets itself
        raise BellaError(
            f"{name} cannot be loaded by datasets ({type(error).__name__}: {shortened(error)}): "
            "give a data set's name on the hub, with config=NAME if it has several, or a folder "
            "with a copy."
        ) from error


def _with_columns(
    name: str,
    parts: Mapping[str, Any],
    preprocess: Preprocess,
    seed: int,
    columns: tuple[str | None, str | None, str | None],
    fractions: Mapping[str, float],
    on_bad_image: OnBadImage,
) -> dict[str, Any]:
    datasets = require("datasets", extra="hf")
    image, text, label = columns
    features = parts["train"].features
    label = _label(name, features, label)
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    texts = [column for column in features if _is_text(features[column]) and column != label]
    if image is None and (text is not None or not images):
        column, is_image = _one(name, "text", texts, text, TEXTS), False
    else:
        column, is_image = _one(name, "image", images, image, ("image", "img")), True
    classes, number = _classes(name, parts["train"], label)
    found: dict[str, Any] = {}
    for part, rows in parts.items():
        absent = [c for c in (column, label) if c not in rows.features]
        if absent:
            raise BellaError(f"The part {part} of {name} has no column {absent[0]!r}.")
        labels = [number.get(value, UNKNOWN) for value in rows[label]]
        if part in PARTS and all(value == UNKNOWN for value in labels):
            warnings.warn(f"{name}: the part {part} has no labels and is left out.", stacklevel=3)
            continue
        unknown = [i for i, value in enumerate(labels) if value == UNKNOWN]
        if part in PARTS and unknown:
            value = rows[unknown[0]][label]
            raise BellaError(
                f"The part {part} of {name} has the label {value!r}, which train does not know: "
                f"near are {nearest(str(value), classes)}."
            )
        own: Labelled
        if is_image:
            raw = rows.cast_column(column, datasets.Image(decode=False))
            process = preprocess if part == "train" else preprocess.plain()
            own = HubImages(raw, column, labels, classes, process).without_bad(on_bad_image)
        else:
            own = LabelledTexts((str(text) for text in rows[column]), labels, classes)
        found[part] = own
    return with_missing_parts(found, fractions, seed, name)


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def _one(
    name: str, what: str, there: Sequence[str], asked: str | None, likely: Sequence[str]
) -> str:
    """The column of a kind: the one asked for, the only one, or the one with the likeliest name."""
    if asked is not None:
        if asked not in there:
            known = nearest(asked, there) if there else "none"
            raise BellaError(f"{name} has no {what} column {asked!r}: its are {known}.")
        return asked
    if len(there) == 1:
        return there[0]
    usual = [column for column in likely if column in there]
    if len(usual) == 1:
        return usual[0]
    raise BellaError(
        f"{name} has {len(there)} {what} columns ({', '.join(there) or 'and no image column'}): "
        f"say which by {what}=NAME."
    )


def _label(name: str, features: Any, asked: str | None) -> str:
    datasets = require("datasets", extra="hf")
    if asked is not None:
        if asked not in features:
            raise BellaError(
                f"{name} has no column {asked!r}: near are {nearest(asked, features)}."
            )
        return asked
    known = [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [c for c in LABELS if c in features]
    for some in (known, [c for c in usual if c in known] if known else usual):
        if len(some) == 1:
            return some[0]
    raise BellaError(
        f"Which column of {name} holds the labels cannot be told among {', '.join(features)}: say "
        "it by label=NAME."
    )


def _classes(name: str, train: Any, label: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of the classes, and from a label as it is written to the index of its class."""
    datasets = require("datasets", extra="hf")
    kind = train.features[label]
    if isinstance(kind, datasets.ClassLabel):
        return tuple(kind.names), {index: index for index in range(len(kind.names))}
    values = set(train[label])
    if not values or not (
        all(isinstance(value, str) for value in values)
        or all(isinstance(value, int) for value in values)
    ):
        raise BellaError(
            f"The column {label!r} of {name} holds {kind}, and a label is a name or a whole "
            "number: say which column holds the labels by label=NAME."
        )
    ordered = sorted(values)
    return tuple(map(str, ordered)), {value: index for index, value in enumerate(ordered)}
