"""A user's own networks: ``package.module:function``."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from bella.data.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from bella.errors import BellaError
from bella.files import shortened
from bella.models.opened import Opened, guess_defaults, seeded
from bella.models.timm import read_preprocess

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(name: str) -> bool:
    """Whether a name reads as ``package.module:function`` of a package that is there."""
    place, _, _ = name.partition(":")
    if FUNCTION.fullmatch(name) is None or place in ("hf", "timm", "open_clip"):
        return False
    return importlib.util.find_spec(place.partition(".")[0]) is not None


def find_function(name: str) -> Callable[..., Any] | None:
    """The function behind ``package.module:function``; ``None`` for other names.

    Raises:
        BellaError: it cannot be imported.
    """
    place, _, function = name.partition(":")
    if not is_function(name):
        return None
    try:
        found = getattr(importlib.import_module(place), function)
    except Exception as error:  # whatever a module does when it is imported
        raise BellaError(
            f"{name} cannot be imported ({shortened(error)}): write package.module:function, and "
            "have its folder in PYTHONPATH."
        ) from error
    if not callable(found):
        raise BellaError(f"{name} is no function that makes a network.")
    return found


def open_own(name: str, classes: int | None, image_size: int | None, seed: int) -> Opened:
    """An image classifier that a user's function makes.

    The function is called with the number of classes, or with nothing where there is none. It
    returns a network, or an `Opened` with its preprocessing and what to adapt. A bare network gets
    its ``pretrained_cfg``, as timm's have one, else ImageNet's preprocessing at 224 pixels.

    Raises:
        BellaError: it cannot be imported, fails, or returns something else.
    """
    function = find_function(name)
    assert function is not None
    try:
        with seeded(seed):
            made = function() if classes is None else function(classes)
    except Exception as error:
        raise BellaError(f"{name} fails ({shortened(error)}).") from error
    if isinstance(made, Opened):
        return made
    if not isinstance(made, nn.Module):
        raise BellaError(f"{name} returns a {type(made).__name__}: return a network, or an Opened.")
    known = getattr(made, "pretrained_cfg", None)
    preprocess = (
        read_preprocess(known, image_size)
        if known
        else Preprocess(image_size or 224, IMAGENET_MEAN, IMAGENET_STD)
    )
    return Opened(made.eval(), preprocess, guess_defaults(made))
