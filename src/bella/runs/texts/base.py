"""What every task on texts says of itself."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from bella.data.records import Records
from bella.errors import BellaError
from bella.files import plain
from bella.inputs import split, to
from bella.models.language import OpenedLanguage
from bella.posterior import Posterior
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


class Tokenised(Dataset[dict[str, Any]]):
    """Rows as tokens; item i is a mapping of what the network takes, with ``labels``.

    Attributes:
        items: the mappings.
        labels: of each.
    """

    fixed = True

    def __init__(self, items: Sequence[dict[str, Any]], labels: Sequence[Any] | None = None):
        self.items = list(items)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
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
    """

    name: ClassVar[str]
    network: ClassVar[str]
    roles: ClassVar[Mapping[str, tuple[str, ...]]]
    answers: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[bool] = False

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

    @abstractmethod
    def evaluate(
        self, posterior: Posterior, loader: Any, ood: Any, facts: Facts, **options: Any
    ) -> dict[str, float]:
        """All figures on labelled rows."""

    @abstractmethod
    def predict(
        self, posterior: Posterior, loader: Any, facts: Facts, **options: Any
    ) -> list[dict[str, Any]]:
        """What is written beside each row; ``entropy`` among it."""


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


def inputs_of(posterior: Posterior, loader: Any) -> Iterator[dict[str, Any]]:
    """The named inputs of every batch, where the posterior is."""
    device = next(posterior.network.parameters()).device
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
