"""A language model as a network that chooses among written options.

The logit of an option is what the model thinks of its text behind the question:

    sum     sum_t log p(y_t | question, y_<t)       the probability of the whole option
    mean    the same over its number of tokens      length counts for nothing

and the softmax over the options is a distribution like that of any classifier, so that everything
that is done with classes is done with options.

Source: Brown et al., Language models are few-shot learners, 2020, section 2.4 (both scores).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bella.errors import BellaError

Score = Literal["sum", "mean"]


class Chooser(nn.Module):
    """Logits of options, (questions, options), from a causal language model of transformers.

    Args:
        language: the model.
        score: ``sum`` or ``mean`` of the log-probabilities of an option's tokens.

    Raises:
        BellaError: an unknown score.
    """

    def __init__(self, language: nn.Module, score: Score = "sum"):
        super().__init__()
        if score not in get_args(Score):
            raise BellaError(f"score={score!r}: choose 'sum' or 'mean'.")
        self.language = language
        self.score = score

    def forward(self, input_ids: Tensor, attention_mask: Tensor, counted: Tensor) -> Tensor:
        """The logit of every option.

        Args:
            input_ids: question and option, padded on the left, (questions, options, length).
            attention_mask: 0 where there is padding, of the same shape.
            counted: which of the last tokens belong to the option, (questions, options, longest
                option).
        """
        questions, options, longest = counted.shape
        ids, mask = input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        outputs: Any = self.language(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            logits_to_keep=longest + 1,
            use_cache=False,
        )
        # The logits of a place are of the token behind it.
        log_probs = torch.log_softmax(outputs.logits[:, :-1].float(), -1)
        chosen = log_probs.gather(-1, ids[:, -longest:, None]).squeeze(-1)
        belongs = counted.flatten(0, 1)
        scores = (chosen * belongs).sum(-1)
        if self.score == "mean":
            scores = scores / belongs.sum(-1)
        return scores.view(questions, options)
