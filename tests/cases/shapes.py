"""How annotations are checked in tests: after the call, so that a function may refuse first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# An int is a float to every reader (PEP 484), if not to `isinstance`.
typed = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """A type checker for jaxtyping that lets the function see wrong arguments.

    jaxtyping makes two functions from a signature and has both checked: the arguments alone before
    the call (it returns ``Any``), and the arguments with what was returned after it. The first is
    left out: a bad argument is the function's own to refuse, with a sentence, and one that it
    accepts must be what its annotation says.
    """
    return function if inspect.signature(function).return_annotation is Any else typed(function)
