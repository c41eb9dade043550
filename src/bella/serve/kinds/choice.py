"""Questions with options: which of them a language model thinks likeliest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field

from bella.errors import BellaError
from bella.serve.kinds.base import check_count, check_texts
from bella.serve.kinds.texts import OfRows
from bella.serve.line import Line
from bella.serve.shapes import Asked, Predictions, Text

DIFFERENT = [
    "one",
    "no",
    "a",
    "city",
    "red",
    "who",
    "you",
    "blue",
    "the",
    "sun",
    "water",
    "green",
    "Paris",
    "two",
    "time",
    "yes",
    "house",
    "stone",
    "three",
    "Rome",
    "cat",
    "book",
    "light",
    "where",
    "hand",
    "tree",
]
"""As many options as a question may have."""


class Question(Asked):
    """A question and its options."""

    question: Text
    options: Annotated[list[Text], Field(min_length=2, max_length=26)]


class AskedQuestions(Asked):
    """Questions to answer."""

    questions: Annotated[list[Question], Field(min_length=1)]


class Choices(OfRows):
    """Which option answers a question; classes are the options' letters."""

    name: ClassVar[str] = "multiple-choice"

    def router(self, line: Line) -> APIRouter:
        """``/v1/predict``."""
        router = APIRouter()

        @router.post("/v1/predict", response_model=Predictions)
        async def predict_choices(asked: AskedQuestions, request: Request) -> Any:
            """The letter of the likeliest option of each question, with its uncertainties."""

            def read() -> list[Any]:
                check_count(asked.questions, self.limits)
                for one in asked.questions:
                    check_texts([one.question, *one.options], self.limits)
                return [self.read(one, n) for n, one in enumerate(asked.questions, 1)]

            return {"predictions": await line.ask(request, read)}

        return router

    @property
    def about(self) -> dict[str, Any]:
        """How many options a question has."""
        return {"options": len(self.run.classes)}

    def read(self, one: Question, number: int) -> Any:
        """A question as a row of the run's own columns.

        Raises:
            BellaError: another number of options than the run was trained on, or empty texts.
        """
        count = len(self.run.classes)
        if len(one.options) != count:
            raise BellaError(
                f"Question {number} has {len(one.options)} options, and the run was trained on "
                f"{count}."
            )
        if not all(text.strip() for text in (one.question, *one.options)):
            raise BellaError(f"Question {number} has an empty text: write something.")
        columns = self.run.asked.columns
        places = columns["options"].split(",")
        options = [json.dumps(one.options)] if len(places) == 1 else one.options
        row = {columns["question"]: one.question, **dict(zip(places, options, strict=True))}
        self.tokenised([row])  # what cannot be read is refused here, and by itself
        return row

    def answer(self, items: Sequence[Any], key: Any) -> list[dict[str, Any]]:
        """One pass of all particles over these questions, padded to the longest of them."""
        return self.class_rows(self.said(list(self.tokenised(items))).cpu(), self.run.classes)

    def trial(self) -> Any:
        """A question whose options differ: of equal ones particles could not."""
        options = DIFFERENT[: len(self.run.classes)]
        return self.read(Question(question="what is this ?", options=options), 1)
