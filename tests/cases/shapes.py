"""How annotations are checked in tests: after the call, so that a function may refuse first."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable
from typing import Any

import torch
from beartype import BeartypeConf, beartype

# An int is a float to every reader (PEP 484), if not to `isinstance`.
typed = beartype(conf=BeartypeConf(is_pep484_tower=True))

OWN = random.Random(0)


def checked(function: Callable) -> Callable:
    """A type checker for jaxtyping that lets the function see wrong arguments.

    jaxtyping makes two functions from a signature and has both checked: the arguments alone before
    the call (it returns ``Any``), and the arguments with what was returned after it. The first is
    left out: a bad argument is the function's own to refuse, with a sentence, and one that it
    accepts must be what its annotation says.

    beartype looks at an item of a list that it chooses at random, here by numbers of its own, so
    that a test of random numbers sees what it would see without a checker. What `torch.compile`
    traces is not checked.
    """
    if inspect.signature(function).return_annotation is Any:
        return function
    check = typed(function)
    handed = check.__kwdefaults__ or {}  # what beartype's code uses
    chance = {key: OWN.getrandbits for key, held in handed.items() if held == random.getrandbits}
    check.__kwdefaults__ = handed | chance

    @functools.wraps(function)
    def check_unseen(*args: Any, **kwargs: Any) -> Any:
        return None if torch.compiler.is_compiling() else check(*args, **kwargs)

    return check_unseen
