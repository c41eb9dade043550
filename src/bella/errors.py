"""The errors a user meets: one sentence that says what is wrong and how to mend it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class BellaError(ValueError):
    """Bad input. The message is one sentence: what is wrong, and how to mend it."""


class Terminated(SystemExit):
    """SIGTERM: the process ends with the status 143 that shells give it."""

    def __init__(self) -> None:
        super().__init__(128 + 15)


class MissingExtraError(BellaError, ImportError):
    """An optional library is needed here and not installed.

    Who catches `BellaError` gets the sentence, and who catches Python's own error gets it too.
    """


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module``, or say which extra of the distribution brings it.

    Args:
        module: dotted name, e.g. ``"matplotlib.pyplot"``.
        extra: name of the extra in ``pip install bella-bnn[extra]``.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module.partition('.')[0]} is needed here and cannot be imported ({error}): "
            f"install it with `pip install 'bella-bnn[{extra}]'`."
        ) from error


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The names in ``known`` that look most like ``name``, for the tail of an error message."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=count, cutoff=0.4) or names[:count]
    return ", ".join(repr(other) for other in near)
