"""What a run on questions about pictures is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bella.data import SETS
from bella.errors import BellaError
from bella.models.seeing import LLAVA_SMOLLM2
from bella.runs.config import RunConfig, complete

FIELDS = RunConfig.model_fields
OF_IMAGES = ("classes", "left_out", "mixture", "templates", "from_adapters", "class_weights")
"""Settings that these runs do not have."""
KIND = "image+question"


class VqaConfig(RunConfig):
    """What ``bella fit --task vqa`` takes: what ``bella fit`` takes, and these.

    Attributes:
        data: ``easy-vqa``; ``vqa2`` with ``folder``, or that folder itself; or a file of rows with
            a picture, a question and its answer, see `bella.runs.vqa.questions`.
        network: a name that `bella.models.seeing.open_seeing` knows.
        columns: of a file, by what they are for: ``image``, ``question``, ``answer``, ``type``.
        prompt: with ``<image>`` and ``{question}``; the network's own by default.
        limit: training questions at most, in equal shares of each answer, and a ninth of them to
            validate on.
        test_limit: test questions that are answered at most, likewise.
        projector: a file of a projector, or a run that has one, to begin with.
        projector_epochs: passes over the training questions in which the projector alone is
            trained, before the particles; 1 of a network whose projector is fresh, else 0.
        projector_rate: its peak learning rate.
        answer_tokens: how many tokens an answer has at most, its end among them; those of the
            longest training answer by default.
    """

    task: Literal["vqa"]
    network: str = LLAVA_SMOLLM2
    columns: dict[str, str] = Field(default_factory=dict)
    prompt: str | None = None
    test_limit: int | None = Field(None, ge=1)
    projector: str | None = None
    projector_epochs: int | None = Field(None, ge=0)
    projector_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    answer_tokens: int | None = Field(None, ge=1)

    def questions(self) -> dict[str, Any]:
        """Arguments of `bella.runs.vqa.questions.read_questions`."""
        return {
            "data": self.data,
            "folder": self.folder,
            "columns": self.columns,
            "options": self.data_options,
            "limit": self.limit,
            "test_limit": self.test_limit,
            "seed": self.seed,
        }


def completed(config: VqaConfig) -> VqaConfig:
    """The same with the method's own settings, and with whole paths.

    Raises:
        BellaError: what does not go together.
    """
    usual = {name: field.get_default(call_default_factory=True) for name, field in FIELDS.items()}
    strange = [name for name in OF_IMAGES if getattr(config, name) != usual[name]]
    if strange:
        raise BellaError(f"{strange[0]} is for runs on images: leave it out with --task vqa.")
    if config.method not in ("low-rank", "full"):
        raise BellaError(
            f"Answers are written token by token, and method {config.method!r} draws other weights "
            "at each: choose low-rank or full."
        )
    if config.head_init != "copy" and "head_init" in config.model_fields_set:
        raise BellaError("Networks that write keep the head that they have: leave out --heads.")
    # What images start with was chosen on images.
    values: dict[str, Any] = {"mixture": "none", "head_init": "copy", "gain": config.gain}
    if config.projector is not None:
        values["projector"] = str(Path(config.projector).absolute())
    if config.data in SETS and SETS[config.data].kind != KIND:
        known = ", ".join(name for name, one in SETS.items() if one.kind == KIND)
        raise BellaError(
            f"{config.data} holds examples of the kind {SETS[config.data].kind!r}: of the sets by "
            f"name {known} have questions about pictures."
        )
    return complete(config.model_copy(update=values))
