"""What a run on texts is asked for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bella.errors import BellaError
from bella.runs.config import RunConfig


class TextConfig(RunConfig):
    """What ``bella fit --task`` takes: what ``bella fit`` takes, and of texts these.

    Attributes:
        task: a name of `bella.runs.texts.TASKS`.
        data: a file of rows, a folder with a data set, ``hf:NAME`` or the name of a set of texts or
            questions; see `bella.data.records.read_records`.
        network: a name that `bella.models.language.open_language` knows; the task's own by default.
        columns: the columns of the data, by what they are for (``text``, ``label``, ...); each task
            looks for usual names where nothing is said.
        max_length: tokens that are kept of a text.
        options_by: how a multiple choice scores an option: by the ``mean`` log-probability of its
            text's tokens, by their ``sum``, or by its ``letter``.
        variance: of a number: one that is ``learned`` for all, or of each ``example``.
    """

    task: Literal["text", "regression", "causal-lm", "multiple-choice"]
    network: str = ""
    columns: dict[str, str] = Field(default_factory=dict)
    max_length: int = Field(256, ge=2)
    options_by: Literal["mean", "sum", "letter"] = "mean"
    variance: Literal["learned", "example"] = "learned"

    def data_arguments(self) -> dict[str, Any]:
        """Arguments of `bella.data.records.read_records`."""
        own = super().data_arguments()
        del own["on_bad_image"]
        return own


def refuse_columns(asked: dict[str, str], known: tuple[str, ...], task: str) -> None:
    """Refuse a column for something that the task does not read.

    Raises:
        BellaError: there is one.
    """
    for role in asked:
        if role not in known:
            raise BellaError(
                f"--column {role}={asked[role]}: task {task} reads {', '.join(known)}."
            )
