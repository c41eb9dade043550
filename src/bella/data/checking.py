"""What is there of some data: parts, classes, and whether they can be read."""

from __future__ import annotations

import warnings
from typing import Any

from bella.data.images import Preprocess
from bella.data.labelled import Labelled
from bella.data.opening import open_data

SIZE = 32
"""Pixels of the images that are read to see that they can be."""


def check_data(data: str, *, every: bool = False, **how: Any) -> dict[str, Any]:
    """Open data and read the first example of each part, or every one.

    Args:
        data: a set's name, ``hf:NAME`` or a path; see `open_data`.
        every: read all examples: slow for many images.
        **how: further arguments of `open_data`.

    Returns:
        ``data``; ``kind``; ``classes``; for each of ``parts`` how many ``examples`` it has, how
        many of them are ``of no class``, and how many of each of its ``classes``; and ``notes``,
        what else there is to know, such as that a copy is not whole.

    Raises:
        BellaError: they cannot be opened, or an example cannot be read.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        parts = open_data(data, Preprocess(SIZE), **how)
        for part in parts.values():
            for position in range(len(part) if every else min(1, len(part))):
                part[position]
    return {
        "data": data,
        "kind": parts["train"].kind,
        "classes": list(parts["train"].classes),
        "parts": {name: describe(part) for name, part in parts.items()},
        "notes": [str(warning.message) for warning in heard],
    }


def describe(part: Labelled) -> dict[str, Any]:
    """How many examples a part has, and how many of each class."""
    counts = dict.fromkeys(part.classes, 0)
    for label in part.labels:
        if label >= 0:
            counts[part.classes[label]] += 1
    return {
        "examples": len(part),
        "of no class": len(part) - sum(counts.values()),
        "classes": counts,
    }
