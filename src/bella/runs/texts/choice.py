"""``multiple-choice``: a question, its options, and which of them is the answer."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch.utils.data import Dataset

from bella.data.choices import TokenisedQuestions
from bella.data.records import Records
from bella.data.written import Questions
from bella.errors import BellaError
from bella.files import parsed, shown
from bella.models.chooser import Chooser
from bella.models.language import OpenedLanguage, open_language
from bella.models.opened import Defaults
from bella.prediction.predict import predict
from bella.prediction.predictive import Predictive
from bella.runs.texts.base import Asked, Facts, TextTask, inputs_of, texts_of
from bella.runs.texts.classification import class_rows
from bella.runs.texts.config import TextConfig

LETTERS = string.ascii_uppercase


class MultipleChoice(TextTask):
    """Which option a language model thinks likeliest behind the question.

    An option is scored by its text, by the mean or the sum of its tokens' log-probabilities, or by
    its letter, where the prompt lists the options with theirs.
    """

    name: ClassVar[str] = "multiple-choice"
    network: ClassVar[str] = "smollm2-135m-instruct"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "question": ("question", "prompt", "query", "stem"),
        "options": ("options", "choices", "endings", "answers"),
        "answer": ("answer", "label", "answerkey", "correct", "target"),
    }
    answers: ClassVar[tuple[str, ...]] = ("answer",)
    classes: ClassVar[bool] = True
    wrapped: ClassVar[str] = "its language model stands inside a network that chooses"
    alone: ClassVar[str] = (
        "what is first among a question's options is another word in the next, so there is no "
        "class that a readout of frozen activations could learn"
    )

    def columns(
        self, records: Records, asked: Mapping[str, str], *, labelled: bool = True
    ) -> dict[str, str]:
        """As for all tasks; options may be several columns, with commas between."""
        several = asked.get("options", "").split(",")
        if len(several) < 2:
            return super().columns(records, asked, labelled=labelled)
        for column in several:
            records.column(column)
        first = dict(asked) | {"options": several[0]}
        found = super().columns(records, first, labelled=labelled)
        return found | {"options": asked["options"]}

    def learn(self, records: Records, columns: Mapping[str, str]) -> Facts:
        """How many options a question has."""
        found = options_of(records, columns["options"])
        return {"classes": list(LETTERS[: len(found[0])])}

    def classes_of(self, records: Records, columns: Mapping[str, str], facts: Facts) -> list[int]:
        """The place of each row's answer among its options."""
        options = options_of(records, columns["options"], len(facts["classes"]))
        cells = records.column(columns["answer"])
        return [
            answer_of(cell, some, f"Row {number} of {records.name}")
            for number, (cell, some) in enumerate(zip(cells, options, strict=True), 1)
        ]

    def open(self, config: TextConfig, facts: Facts) -> OpenedLanguage:
        """A language model as a network that chooses."""
        opened = open_language(config.network, None, config.seed, quantised=config.quantised)
        by_mean = config.options_by == "mean"
        network = Chooser(opened.network, "mean" if by_mean else "sum").eval()
        network.likelihood = "classes"  # type: ignore[assignment]
        # Names of layers begin with the language model's place now.
        targets = [rf"language\.{t}" if "\\" in t else t for t in opened.defaults.target_modules]
        return OpenedLanguage(network, opened.tokenizer, Defaults(tuple(targets), ()))

    def tokenise(self, records: Records, asked: Asked, *, labelled: bool = True) -> Dataset:
        """Questions with options, all of one shape."""
        classes, columns = asked.facts["classes"], asked.columns
        questions = texts_of(records, columns["question"])
        options = options_of(records, columns["options"], len(classes))
        labels = [-1] * len(records)
        if labelled:
            labels = self.classes_of(records, columns, asked.facts)
        if asked.options_by == "letter":
            listed = [
                "".join(f"\n{letter}. {text}" for letter, text in zip(classes, some, strict=True))
                for some in options
            ]
            questions = [q + more for q, more in zip(questions, listed, strict=True)]
            options = [tuple(classes)] * len(records)
        if not len(records):
            raise BellaError(f"{records.name} holds no rows.")
        given = Questions(questions, options, labels, classes)
        return TokenisedQuestions(given, asked.tokenizer, prompt_of)

    def collate(self, tokenizer: Any) -> Callable[[list], Any] | None:
        """None: all questions have one shape."""
        return None

    def predict(
        self, posterior: Any, loader: Any, facts: Facts, **options: Any
    ) -> list[dict[str, Any]]:
        """The letter of the likeliest option, its probability, entropy, and each option's."""
        return class_rows(self.said(posterior, loader, facts, **options), facts["classes"])

    def said(self, posterior: Any, loader: Any, facts: Facts, **options: Any) -> Any:
        """The predictive of all questions."""
        parts = []
        for inputs in inputs_of(posterior, loader):
            parts.append(predict(posterior, inputs, **options).cpu())
        return Predictive.cat(parts)


def prompt_of(question: str) -> str:
    """What stands before an option."""
    return f"Question: {question}\nAnswer:"


def options_of(records: Records, columns: str, count: int | None = None) -> list[tuple[str, ...]]:
    """The options of every question, from one column of lists or several of texts.

    Raises:
        BellaError: no list, or not as many as the first question has.
    """
    names = columns.split(",")
    cells = [records.column(name) for name in names]
    found = []
    for number, row in enumerate(zip(*cells, strict=True), 1):
        some = _listed(row[0]) if len(names) == 1 else list(row)
        where = f"Row {number} of {records.name}"
        if some is None or not all(isinstance(o, str) and o.strip() for o in some):
            raise BellaError(
                f"{where} has {shown(row[0])} in column {names[0]!r}, and options are a list of "
                "texts (in a CSV as JSON), or several columns: --column options=a,b,c,d."
            )
        count = len(some) if count is None else count
        if len(some) != count or not 2 <= len(some) <= len(LETTERS):
            raise BellaError(
                f"{where} has {len(some)} options and the first question {count}: give all "
                f"questions as many, from 2 to {len(LETTERS)}."
            )
        found.append(tuple(some))
    return found


def _listed(cell: Any) -> list[Any] | None:
    if isinstance(cell, str):
        try:
            cell = parsed(cell)
        except ValueError:
            return None
    if isinstance(cell, Mapping):  # {"text": [...], "label": [...]}, as ARC has it
        cell = cell.get("text")
    return list(cell) if isinstance(cell, Sequence) and not isinstance(cell, str) else None


def answer_of(cell: Any, options: Sequence[str], where: str) -> int:
    """The place of an answer: an option's text, its letter, or its number counted from 0.

    Raises:
        BellaError: it is none of these.
    """
    word = "" if cell is None else str(cell).strip()
    same = [place for place, option in enumerate(options) if option.strip() == word]
    if len(same) == 1:
        return same[0]
    if len(word) == 1 and word.upper() in LETTERS[: len(options)]:
        return LETTERS.index(word.upper())
    if word.isdecimal() and int(word) < len(options):
        return int(word)
    raise BellaError(
        f"{where} has the answer {shown(cell)}, which is no option's text, letter or number "
        f"(0 to {len(options) - 1})."
    )
