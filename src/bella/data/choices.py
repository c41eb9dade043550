"""Questions with written options, as the tokens that `bella.models.chooser` scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bella.data.written import Questions
from bella.errors import BellaError


class TokenisedQuestions(Questions):
    """Questions as tokens; item i is ({input_ids, attention_mask, counted}, label).

    Every item is padded to the longest of the questions that were given, whichever are selected of
    them afterwards: batches then have one shape.

    Args:
        questions: as people wrote them.
        tokenizer: of the language model.
        prompt: from a question to the text before its options.
    """

    def __init__(self, questions: Questions, tokenizer: Any, prompt: Callable[[str], str]):
        super().__init__(
            questions.questions, questions.options, questions.labels, questions.classes
        )
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.longest = max(map(self.length, range(len(self))), default=0)
        self.longest_option = max(
            (len(answer) for i in range(len(self)) for answer in self.tokens(i)[1]), default=0
        )

    def length(self, index: int) -> int:
        """Tokens of a question with its longest option."""
        prompt, answers = self.tokens(index)
        return len(prompt) + max(map(len, answers))

    def tokens(self, index: int) -> tuple[list[int], list[list[int]]]:
        """A question's tokens, and those of each of its options.

        Raises:
            BellaError: an option without any.
        """
        prompt = self.tokenizer(self.prompt(self.questions[index]))["input_ids"]
        options = [f" {option}" for option in self.options[index]]
        answers = self.tokenizer(options, add_special_tokens=False)["input_ids"]
        if not all(answers):
            raise BellaError(f"The question {self.questions[index]!r:.60} has an empty option.")
        return prompt, answers

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:  # type: ignore[override]
        prompt, answers = self.tokens(index)
        fill = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(answers), self.longest), fill)
        mask = torch.zeros_like(ids)
        counted = torch.zeros(len(answers), self.longest_option, dtype=torch.long)
        for row, answer in enumerate(answers):
            text = torch.tensor([*prompt, *answer])
            ids[row, -len(text) :] = text
            mask[row, -len(text) :] = 1
            counted[row, -len(answer) :] = 1
        return {"input_ids": ids, "attention_mask": mask, "counted": counted}, self.labels[index]
