"""Anybody's rows of text: classes of texts, and multiple choice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bella.data.records import divided, read_records
from bella.data.written import LabelledTexts
from bella.errors import BellaError
from bella.experiments.tasks.task import Task, Words, fixed
from bella.models.language import OpenedLanguage
from bella.runs.texts.base import Asked
from bella.runs.texts.config import TextConfig
from bella.runs.texts.tasks import task_named
from bella.runs.texts.training import completed
from bella.training.settings import checked


class PaddedTexts(LabelledTexts):
    """Texts as tokens, padded to one length; item i is (mapping of tensors, label).

    Args:
        items: the tokens of each text, with ``labels``.
        classes: names of the classes.
        tokenizer: pads them.
        length: tokens of every item.
    """

    columns: ClassVar[tuple[str, ...]] = ("texts", "items", "labels")

    def __init__(
        self, items: list[dict[str, Any]], classes: list[str], tokenizer: Any, length: int
    ):
        labels = [item["labels"] for item in items]
        super().__init__([tokenizer.decode(item["input_ids"]) for item in items], labels, classes)
        names = [name for name in items[0] if name != "labels"]
        bare = [{name: item[name] for name in names} for item in items]
        whole = tokenizer.pad(bare, padding="max_length", max_length=length, return_tensors="pt")
        self.items = [{name: whole[name][i] for name in whole} for i in range(len(items))]

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:  # type: ignore[override]
        return self.items[index], self.labels[index]


def text_task(settings: Mapping[str, Any]) -> Task:
    """Rows of a file, for a comparison.

    Args:
        settings: the fields of `bella.runs.texts.TextConfig` that say what the rows are.

    Raises:
        BellaError: a task whose figures are not those of classes, or see `bella.runs.train_text`.
    """
    config = completed(checked(TextConfig, dict(settings)))
    task = task_named(config.task)
    if config.task not in ("text", "multiple-choice"):
        raise BellaError(
            f"bella compare sets figures of classes side by side, and task {config.task!r} has "
            "none: compare its runs by bella evaluate, or choose text or multiple-choice."
        )
    read = read_records(config.data)
    columns = task.columns(read["train"], config.columns)
    facts = task.learn(read["train"], columns)
    rows = divided(read, task.classes_of(read["train"], columns, facts), config.seed)

    def open_it(seed: int) -> OpenedLanguage:
        with torch.random.fork_rng():
            return task.open(config.model_copy(update={"seed": seed}), facts)

    tokenizer = open_it(0).tokenizer
    asked = Asked(tokenizer, columns, facts, config.max_length, config.options_by)
    parts: dict[str, Any] = {part: task.tokenise(some, asked) for part, some in rows.items()}
    if config.task == "text":
        longest = max(len(item["input_ids"]) for part in parts.values() for item in part.items)
        parts = {
            name: PaddedTexts(part.items, facts["classes"], tokenizer, longest)
            for name, part in parts.items()
        }
    return Task(
        Path(config.data).stem,
        f"{config.data}, {config.network}",
        open_it,
        parts,
        fixed(parts),
        words=Words(examples="questions" if config.task == "multiple-choice" else "texts"),
    )
