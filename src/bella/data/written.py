"""Labelled texts and questions, as people wrote them: nothing is tokenised here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from bella.data.images import Preprocess
from bella.data.labelled import Kind, Labelled, LabelledImages


class LabelledTexts(Labelled):
    """Texts with labels; item i is (text, label).

    Args:
        texts: as they are.
        labels: for each text the index of its class.
        classes: names of the classes.
    """

    columns: ClassVar[tuple[str, ...]] = ("texts", "labels")
    kind: ClassVar[Kind] = "text"
    examples: ClassVar[str] = "texts"

    def __init__(self, texts: Iterable[str], labels: Iterable[int], classes: Sequence[str]):
        self.texts = list(texts)
        self.labels = list(labels)
        self.classes = tuple(classes)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.texts[index], self.labels[index]


class Questions(Labelled):
    """Questions with options of their own; item i is ((question, options), label).

    Args:
        questions: as they are.
        options: for each question its possible answers, as many as there are ``classes``.
        labels: for each question the position of the right answer among its options.
        classes: names of the positions, such as A, B, C and D.
    """

    columns: ClassVar[tuple[str, ...]] = ("questions", "options", "labels")
    kind: ClassVar[Kind] = "question"
    examples: ClassVar[str] = "questions"

    def __init__(
        self,
        questions: Iterable[str],
        options: Iterable[tuple[str, ...]],
        labels: Iterable[int],
        classes: Sequence[str],
    ):
        self.questions = list(questions)
        self.options = list(options)
        self.labels = list(labels)
        self.classes = tuple(classes)

    def __getitem__(self, index: int) -> tuple[tuple[str, tuple[str, ...]], int]:
        return (self.questions[index], self.options[index]), self.labels[index]


class ImageQuestions(LabelledImages):
    """Questions about images; item i is ((tensor (3, height, width), question), label).

    Args:
        paths: for each question the file of its image.
        questions: as they are.
        answers: for each question what people answered, one entry a person.
        kinds: for each question the kind of its answer: yes/no, number or other.
        labels: for each question the index of its answer.
        classes: the answers that are told apart.
        preprocess: from a PIL image to a tensor.
    """

    columns: ClassVar[tuple[str, ...]] = ("paths", "questions", "answers", "kinds", "labels")
    kind: ClassVar[Kind] = "image+question"
    examples: ClassVar[str] = "questions"

    def __init__(
        self,
        paths: Sequence[Path],
        questions: Iterable[str],
        answers: Iterable[tuple[str, ...]],
        kinds: Iterable[str],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocess: Preprocess,
    ):
        super().__init__(paths, labels, classes, preprocess)
        self.questions = list(questions)
        self.answers = list(answers)
        self.kinds = list(kinds)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, str], int]:
        return (self.preprocess(self.image(index)), self.questions[index]), self.labels[index]
