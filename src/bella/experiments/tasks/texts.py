"""Rows of text as a task: anybody's, and what the tasks on sets of texts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bella.data.opening import any_known, shifts_of
from bella.data.written import LabelledTexts
from bella.errors import BellaError
from bella.experiments.tasks.task import Task, Words, fixed
from bella.models.language import OpenedLanguage, open_language
from bella.runs.texts.base import Asked, labelled_if_known
from bella.runs.texts.config import TextConfig
from bella.runs.texts.tasks import task_named
from bella.runs.texts.training import completed, rows_of
from bella.training.settings import checked

START: Mapping[str, Any] = {"gain": 1.0}
"""How low-rank factors start on networks that read text: not as wide as on images. On drug reviews
and WordNet's multiple choice validation likes it better (docs/results.md)."""


class PaddedTexts(LabelledTexts):
    """Texts as tokens, padded to one length; item i is (mapping of tensors, label).

    Args:
        texts: as people wrote them.
        items: the tokens of each.
        labels: for each the index of its class.
        classes: names of the classes.
        tokenizer: pads them.
        length: tokens of every item.
    """

    columns: ClassVar[tuple[str, ...]] = ("texts", "items", "labels")

    def __init__(
        self,
        texts: Sequence[str],
        items: Sequence[Mapping[str, Any]],
        labels: Sequence[int],
        classes: Sequence[str],
        tokenizer: Any,
        length: int,
    ):
        super().__init__(texts, labels, classes)
        whole = tokenizer.pad(
            list(items), padding="max_length", max_length=length, return_tensors="pt"
        )
        self.items = [{name: whole[name][i] for name in whole} for i in range(len(items))]

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:  # type: ignore[override]
        return self.items[index], self.labels[index]


def padded(
    parts: Mapping[str, LabelledTexts], tokenizer: Any, max_length: int = 256
) -> dict[str, PaddedTexts]:
    """Texts as tokens, cut at ``max_length`` and all padded to the longest."""
    encoded = {
        name: tokenizer(part.texts, truncation=True, max_length=max_length)
        for name, part in parts.items()
    }
    longest = max(len(ids) for some in encoded.values() for ids in some["input_ids"])
    return {
        name: PaddedTexts(
            part.texts,
            [{key: some[key][i] for key in some} for i in range(len(part))],
            part.labels,
            part.classes,
            tokenizer,
            longest,
        )
        for (name, part), some in zip(parts.items(), encoded.values(), strict=True)
    }


def classifier(network: str, classes: int) -> Callable[[int], OpenedLanguage]:
    """A fresh classifier of texts, for each seed."""
    return lambda seed: open_language(network, classes, seed)


def text_task(settings: Mapping[str, Any]) -> Task:
    """Rows of a file or of a set by name, for a comparison.

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
    rows, columns, facts = rows_of(task, config)

    def open_it(seed: int) -> OpenedLanguage:
        with torch.random.fork_rng():
            return task.open(config.model_copy(update={"seed": seed}), facts)

    tokenizer = open_it(0).tokenizer
    asked = Asked(tokenizer, columns, facts, config.max_length, config.options_by)
    parts: dict[str, Any] = {
        part: labelled_if_known(task, some, asked)
        if part in shifts_of(rows)
        else task.tokenise(some, asked)
        for part, some in rows.items()
    }
    if config.task == "text":
        longest = max(len(item["input_ids"]) for part in parts.values() for item in part.items)
        parts = {
            name: PaddedTexts(
                part.texts,
                [{key: x for key, x in item.items() if key != "labels"} for item in part.items],
                part.labels,
                facts["classes"],
                tokenizer,
                longest,
            )
            for name, part in parts.items()
        }
    shifts = shifts_of(parts)
    return Task(
        Path(config.data).stem,
        f"{config.data}, {config.network}",
        open_it,
        parts,
        fixed(parts),
        {name: name for name in shifts},
        build=START,
        words=Words(
            examples="questions" if config.task == "multiple-choice" else "texts",
            unscored=tuple(name for name in shifts if not any_known(parts[name])),
        ),
    )
