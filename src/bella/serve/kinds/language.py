"""Language models: answers to prompts, scores of given ones, and what the particles dispute."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from bella.errors import BellaError
from bella.generation.texts import answer_tokens, check_length, prompt_tokens
from bella.runs.writing import Writer
from bella.serve.guard import RefusedError
from bella.serve.kinds.base import Kind, check_count, check_texts
from bella.serve.limits import Limits
from bella.serve.line import Line
from bella.serve.shapes import Answers, Asked, Text

LENGTH = 64
"""Tokens of an answer where nobody says otherwise."""


class Message(Asked):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Prompt(Asked):
    """A prompt as it stands, or the messages of a chat."""

    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None


class Generate(Asked):
    """Prompts to answer: by the likeliest tokens, or, with ``sample``, by drawn ones."""

    prompts: Annotated[list[Text | Prompt], Field(min_length=1)]
    max_new_tokens: int | None = Field(
        None, ge=1, le=2**20, description="64, or the service's limit if that is lower."
    )
    sample: bool = False
    temperature: float | None = Field(None, ge=0.001, le=1000, description="Of sample.")
    top_k: int | None = Field(None, ge=1, le=2**31 - 1, description="Of sample.")
    top_p: float | None = Field(None, gt=0, le=1, description="Of sample.")
    seed: int = Field(0, ge=0, le=2**53 - 1, description="Of sample.")


class Given(Prompt):
    """A prompt with an answer to score; it stands behind the prompt as it is."""

    answer: Text


class Score(Asked):
    """Answers to score."""

    given: Annotated[list[Given], Field(min_length=1)]


class Language(Kind):
    """What a language model writes, and what its particles think of it."""

    name: ClassVar[str] = "causal-lm"
    trial_key: ClassVar[Any] = ("generate", 0, (("max_new_tokens", 2), ("do_sample", False)))

    def __init__(self, run: Any, limits: Limits, threshold: float | None = None):
        super().__init__(run, limits, threshold)
        if run.precision != "float32":
            raise BellaError(
                f"precision {run.precision!r}: language models write in float32, so leave out "
                "--precision."
            )
        self.writer = Writer(run.posterior, run.asked.tokenizer)
        self._numbers = itertools.count(1)

    def router(self, line: Line) -> APIRouter:
        """``/v1/generate`` and ``/v1/score``."""
        router = APIRouter()

        @router.post("/v1/generate", response_model=Answers)
        async def generate(asked: Generate, request: Request) -> Any:
            """One answer to each prompt, from the particles' averaged next-token distribution."""
            key = self.key_of(asked)

            def read() -> list[Any]:
                check_count(asked.prompts, self.limits)
                lines = [line_of(p, n) for n, p in enumerate(asked.prompts, 1)]
                return [self.read(one, self.length_of(asked)) for one in lines]

            return {"answers": await line.ask(request, read, key)}

        @router.post("/v1/score", response_model=Answers)
        async def score(asked: Score, request: Request) -> Any:
            """What the particles think of given answers."""

            def read() -> list[Any]:
                check_count(asked.given, self.limits)
                lines = [line_of(p, n) for n, p in enumerate(asked.given, 1)]
                return [self.read(one, 0) for one in lines]

            return {"answers": await line.ask(request, read, ("score",))}

        return router

    @property
    def about(self) -> dict[str, Any]:
        """Whether it knows chats."""
        return {"chat": bool(getattr(self.writer.tokenizer, "chat_template", None))}

    def key_of(self, asked: Generate) -> Any:
        """Requests of equal keys are written together; one that draws is written by itself, since
        what it draws depends on what stands beside it.

        Raises:
            RefusedError: an option of sampling without ``sample``, or too long an answer.
        """
        drawn = {name: getattr(asked, name) for name in ("temperature", "top_k", "top_p")}
        drawn = {name: value for name, value in drawn.items() if value is not None}
        if drawn and not asked.sample:
            raise RefusedError(422, f"{next(iter(drawn))} is for sample: add it, or leave it out.")
        if self.length_of(asked) > self.limits.tokens:
            raise RefusedError(
                413, f"An answer may have {self.limits.tokens} tokens here: ask for fewer."
            )
        options = (
            ("max_new_tokens", self.length_of(asked)),
            ("do_sample", asked.sample),
            *sorted(drawn.items()),
        )
        alone = (next(self._numbers),) if asked.sample else ()
        return ("generate", asked.seed if asked.sample else 0, options, *alone)

    def length_of(self, asked: Generate) -> int:
        """How many tokens an answer may have."""
        return asked.max_new_tokens or min(LENGTH, self.limits.tokens)

    def read(self, line: dict[str, Any], more: int) -> dict[str, Any]:
        """A prompt that can be answered, as it is.

        Raises:
            BellaError: its tokens, with those of an answer, are more than the network reads.
            RefusedError: it has too many characters.
        """
        asked: Any = line.get("messages", line.get("prompt"))
        texts = [m["content"] for m in asked] if isinstance(asked, list) else [asked]
        check_texts(["".join(texts) + line.get("answer", "")], self.limits)
        count = len(prompt_tokens(asked, self.writer.tokenizer)) + more
        if "answer" in line:
            count += len(answer_tokens(line["answer"], self.writer.tokenizer, False))
        check_length(self.writer.posterior.network, count)
        return line

    def answer(self, items: Sequence[dict[str, Any]], key: Any) -> list[dict[str, Any]]:
        """Answers to these prompts, or scores of these answers, in one go."""
        options: dict[str, Any] = (
            {"given": True} if key[0] == "score" else {"seed": key[1], **dict(key[2])}
        )
        with self._dice:  # one seeds the generator that another would draw from
            rows = self.writer.answer(items, batch_size=len(items), **options)
        return [{k: v for k, v in row.items() if k not in ("prompt", "messages")} for row in rows]

    def trial(self) -> dict[str, Any]:
        """A short prompt."""
        return {"prompt": "this is one of them"}


def line_of(asked: str | Prompt, number: int) -> dict[str, Any]:
    """A prompt as `bella.runs.writing.read_prompts` has it.

    Raises:
        BellaError: neither a text nor messages, or both.
    """
    if isinstance(asked, str):
        return {"prompt": asked}
    if (asked.prompt is None) == (asked.messages is None):
        raise BellaError(f"Prompt {number} must have either 'prompt' or 'messages'.")
    return asked.model_dump(exclude_none=True)
