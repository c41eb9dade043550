"""What every task on texts says of itself."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from bella.data.records import Records
from bella.data.written import LabelledTexts
from bella.errors import BellaError
from bella.evaluation.evaluate import evaluate
from bella.files import plain
from bella.inputs import split, to
from bella.models.language import OpenedLanguage
from bella.posterior import Posterior
from bella.prediction.predict import Combined
from bella.runs.texts.config import TextConfig

Facts = dict[str, Any]
"""What a task learnt from its training data and needs ever after, as JSON: classes, a scale."""


@dataclass(frozen=True)
class Asked:
    """How a task reads rows.

    Attributes:
        tokenizer: of the network.
        columns: by what they are for.
        facts: of the training data.
        max_length: tokens that are kept of a text.
        options_by: see `TextConfig`.
    """

    tokenizer: Any
    columns: Mapping[str, str]
    facts: Facts = field(default_factory=dict)
    max_length: int = 256
    options_by: str = "mean"


class TokenisedTexts(LabelledTexts):
    """Texts as tokens; item i is a mapping of what the network takes, with ``labels``.

    Args:
        texts: as people wrote them.
        items: the mappings.
        labels: of each: a class, a number, or as the task marks what has none.
        classes: names of the classes, where there are any.
    """

    columns: ClassVar[tuple[str, ...]] = ("texts", "items", "labels")

    def __init__(
        self,
        texts: Sequence[str],
        items: Sequence[dict[str, Any]],
        labels: Sequence[Any],
        classes: Sequence[str] = (),
    ):
        super().__init__(texts, labels, classes)
        self.items = list(items)

    def __getitem__(self, index: int) -> Any:
        return dict(self.items[index])


class TextTask(ABC):
    """One task.

    Attributes:
        name: what a user types as ``--task``.
        network: where nobody names one.
        roles: the columns that it reads, by what they are for: their usual names, the likelier
            first. ``label`` or whatever `answers` names may be missing where one predicts.
        answers: the roles without which one can predict, but not train.
        optional: the roles that may be missing always.
        heads: whether a fresh head is trained, which probes may start.
        classes: whether what is said of a row is one distribution over classes (or options), so
            that it can be calibrated and promised by.
        alone: why no readouts of frozen activations can be pooled with the particles; empty where
            they can (`bella.mixture`).
        wrapped: why its network is not one of transformers' as it is, which adapters and other
            programs take; empty where it is.
    """

    name: ClassVar[str]
    network: ClassVar[str]
    roles: ClassVar[Mapping[str, tuple[str, ...]]]
    answers: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[bool] = False
    classes: ClassVar[bool] = False
    alone: ClassVar[str] = ""
    wrapped: ClassVar[str] = ""

    def columns(
        self, records: Records, asked: Mapping[str, str], *, labelled: bool = True
    ) -> dict[str, str]:
        """The columns by what they are for.

        Raises:
            BellaError: one is not there; the sentence lists those that are.
        """
        found = {}
        for role, usual in self.roles.items():
            wanted = asked.get(role)
            needless = role in self.optional or (not labelled and role in self.answers)
            if not needless or records.has(wanted, usual):
                found[role] = records.find(role, wanted, usual)
        return found

    @abstractmethod
    def learn(self, records: Records, columns: Mapping[str, str]) -> Facts:
        """What the training rows say once and for all."""

    def classes_of(self, records: Records, columns: Mapping[str, str], facts: Facts) -> Any:
        """The class of each row, for a split alike in all; ``None`` where there are none."""
        return None

    @abstractmethod
    def open(self, config: TextConfig, facts: Facts) -> OpenedLanguage:
        """A fresh network with its tokenizer."""

    @abstractmethod
    def tokenise(self, records: Records, asked: Asked, *, labelled: bool = True) -> Dataset:
        """Rows as tokens.

        Raises:
            BellaError: a row that cannot be read so, named by its number.
        """

    @abstractmethod
    def collate(self, tokenizer: Any) -> Callable[[list], Any] | None:
        """Transformers' collator; ``None`` for examples of one shape."""

    def evaluate(
        self, posterior: Any, loader: Any, ood: Mapping[str, Any], facts: Facts, **options: Any
    ) -> dict[str, float]:
        """All figures on labelled rows; those of `bella.evaluate` where nobody says otherwise.

        Args:
            posterior: the particles, or a mixture of them with readouts.
            loader: the rows.
            ood: rows of other kinds, by name.
            facts: of the training data.
            **options: of `bella.evaluation.evaluate.collect`.
        """
        return evaluate(posterior, loader, ood=ood, **options)

    @abstractmethod
    def predict(
        self, posterior: Any, loader: Any, facts: Facts, **options: Any
    ) -> list[dict[str, Any]]:
        """What is written beside each row; ``entropy`` among it."""


def labelled_if_known(task: TextTask, records: Records, asked: Asked) -> Dataset:
    """Rows of another kind as tokens: with their labels where the task knows all of them."""
    if set(task.answers) <= set(asked.columns):
        with suppress(BellaError):
            return task.tokenise(records, asked)
    return task.tokenise(records, asked, labelled=False)


def texts_of(records: Records, column: str) -> list[str]:
    """A column of texts.

    Raises:
        BellaError: a cell that is none.
    """
    found = records.column(column)
    for number, cell in enumerate(found, 1):
        if not isinstance(cell, str) or not cell.strip():
            raise BellaError(
                f"Row {number} of {records.name} has no text in column {column!r}: fill it, or "
                "take the row away."
            )
    return found


def inputs_of(posterior: Posterior | Combined, loader: Any) -> Iterator[dict[str, Any]]:
    """The named inputs of every batch, where the posterior is."""
    device = next(posterior.parameters()).device
    for batch in loader:
        yield to(split(batch)[1], device)


def digest_of(records: Mapping[str, Records]) -> str:
    """A checksum of all rows, part by part: whether a run goes on with the same data."""
    digest = hashlib.sha256()
    for part, some in records.items():
        digest.update(part.encode())
        for row in some.rows:
            digest.update(json.dumps(plain(row), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def rounded(values: Tensor) -> list[float]:
    """Six digits, as files have them."""
    return [round(float(value), 6) for value in values]
