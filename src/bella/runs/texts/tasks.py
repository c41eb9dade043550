"""The tasks on texts, by the name that a user types."""

from __future__ import annotations

from bella.errors import BellaError
from bella.runs.texts.base import TextTask
from bella.runs.texts.causal import CausalLM
from bella.runs.texts.choice import MultipleChoice
from bella.runs.texts.classification import Classification
from bella.runs.texts.regression import Regression

TASKS: dict[str, TextTask] = {
    task.name: task for task in (Classification(), Regression(), CausalLM(), MultipleChoice())
}


def task_named(name: str) -> TextTask:
    """One of `TASKS`.

    Raises:
        BellaError: there is none of that name.
    """
    if name not in TASKS:
        known = ", ".join(map(repr, TASKS))
        raise BellaError(f"task {name!r} is unknown: choose {known}; of images leave --task out.")
    return TASKS[name]
