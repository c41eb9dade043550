"""``text``: a text, or a pair of texts, and its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch.utils.data import Dataset

from bella.data.records import Records
from bella.errors import BellaError, nearest, require
from bella.models.language import OpenedLanguage, open_language
from bella.prediction.predict import predict
from bella.prediction.predictive import Predictive
from bella.runs.texts.base import (
    Asked,
    Facts,
    TextTask,
    TokenisedTexts,
    inputs_of,
    rounded,
    texts_of,
)
from bella.runs.texts.config import TextConfig


class Classification(TextTask):
    """A text's class."""

    name: ClassVar[str] = "text"
    network: ClassVar[str] = "minilm-l6"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("text", "sentence", "review", "content", "premise", "sentence1", "question"),
        "pair": ("text_pair", "hypothesis", "sentence2"),
        "label": ("label", "labels", "class", "category", "target", "sentiment"),
    }
    answers: ClassVar[tuple[str, ...]] = ("label",)
    optional: ClassVar[tuple[str, ...]] = ("pair",)
    heads: ClassVar[bool] = True
    classes: ClassVar[bool] = True
    unknown: ClassVar[float] = -1
    """The label of a row that has none."""

    def learn(self, records: Records, columns: Mapping[str, str]) -> Facts:
        """The classes: the distinct labels, by number where all are numbers."""
        found = {_word(cell) for cell in records.column(columns["label"])} - {""}
        if len(found) < 2:
            raise BellaError(
                f"Column {columns['label']!r} of {records.name} holds "
                f"{'one label alone' if found else 'no labels'}: a classifier needs two at least "
                f"(its columns are {', '.join(records.columns)})."
            )
        if len(found) > len(records) / 2:
            raise BellaError(
                f"Column {columns['label']!r} of {records.name} holds {len(found)} different "
                f"labels in {len(records)} rows: is it another column (of "
                f"{', '.join(records.columns)}), or numbers for --task regression?"
            )
        numbers = all(word.removeprefix("-").isdecimal() and len(word) < 100 for word in found)
        return {"classes": sorted(found, key=(lambda w: (int(w), w)) if numbers else None)}

    def classes_of(self, records: Records, columns: Mapping[str, str], facts: Facts) -> list[int]:
        """The index of each row's class.

        Raises:
            BellaError: a row without a label, or of a class that training did not have.
        """
        places = {name: place for place, name in enumerate(facts["classes"])}
        found = []
        for number, cell in enumerate(records.column(columns["label"]), 1):
            if _word(cell) not in places:
                raise BellaError(
                    f"Row {number} of {records.name} has the label {_word(cell)!r}, which is none "
                    f"of the {len(places)} classes: near are {nearest(_word(cell), places)}."
                )
            found.append(places[_word(cell)])
        return found

    def open(self, config: TextConfig, facts: Facts) -> OpenedLanguage:
        """A classifier with a fresh head."""
        classes = len(facts["classes"])
        return open_language(config.network, classes, config.seed, quantised=config.quantised)

    def labels_of(self, records: Records, asked: Asked) -> list[Any]:
        """What each row's ``labels`` are."""
        return self.classes_of(records, asked.columns, asked.facts)

    def tokenise(self, records: Records, asked: Asked, *, labelled: bool = True) -> Dataset:
        """Texts, cut at ``max_length`` tokens."""
        texts = [
            texts_of(records, asked.columns[r]) for r in ("text", "pair") if r in asked.columns
        ]
        labels = [self.unknown] * len(records)
        if labelled:
            labels = self.labels_of(records, asked)
        if not len(records):
            raise BellaError(f"{records.name} holds no rows.")
        encoded = asked.tokenizer(*texts, truncation=True, max_length=asked.max_length)
        items = [{name: encoded[name][i] for name in encoded} for i in range(len(records))]
        for item, label in zip(items, labels, strict=True):
            item["labels"] = label
        written = [" / ".join(parts) for parts in zip(*texts, strict=True)]
        return TokenisedTexts(written, items, labels, asked.facts.get("classes", ()))

    def collate(self, tokenizer: Any) -> Callable[[list], Any]:
        """Transformers' padding to the longest of a batch."""
        return require("transformers", extra="hf").DataCollatorWithPadding(tokenizer)

    def predict(
        self, posterior: Any, loader: Any, facts: Facts, **options: Any
    ) -> list[dict[str, Any]]:
        """Class, its probability, entropy, mutual information, novelty where a mixture says it, and
        each class's probability."""
        return class_rows(self.said(posterior, loader, facts, **options), facts["classes"])

    def said(self, posterior: Any, loader: Any, facts: Facts, **options: Any) -> Any:
        """The predictive of all rows."""
        parts = []
        for inputs in inputs_of(posterior, loader):
            parts.append(predict(posterior, inputs, **options).cpu())
        return Predictive.cat(parts)


def class_rows(said: Predictive, classes: list[str]) -> list[dict[str, Any]]:
    """What is said of classes, a row an example."""
    columns = {
        "probability": rounded(said.confidence),
        "entropy": rounded(said.entropy),
        "mutual_information": rounded(said.mutual_information),
        **({} if said.novelty is None else {"novelty": rounded(said.novelty)}),
    } | {f"p({name})": rounded(said.probs[:, k]) for k, name in enumerate(classes)}
    named = [classes[int(k)] for k in said.predictions]
    return [
        {"class": name} | {column: values[i] for column, values in columns.items()}
        for i, name in enumerate(named)
    ]


def _word(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()
