"""Kinds of runs that are served: a file a kind, and its line in `KINDS`."""

from __future__ import annotations

from typing import Any

from bella.errors import BellaError
from bella.runs import TextRun, VqaRun
from bella.serve.kinds.base import Kind
from bella.serve.kinds.choice import Choices
from bella.serve.kinds.images import Images
from bella.serve.kinds.language import Language
from bella.serve.kinds.texts import Regressions, Texts

KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Images, Texts, Regressions, Choices, Language)
}
"""By what a run is of: ``images``, or the name of its task on texts."""


def kind_of(run: Any) -> type[Kind]:
    """The kind of an opened run.

    Raises:
        BellaError: there is none for its task.
    """
    name = "vqa" if isinstance(run, VqaRun) else "images"
    if isinstance(run, TextRun):
        name = run.task.name
    if name not in KINDS:
        raise BellaError(f"Runs of task {name!r} are not served: known are {', '.join(KINDS)}.")
    return KINDS[name]
