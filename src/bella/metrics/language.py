"""Figures of written answers: tokens and whole answers. Those beside people's: `metrics.vqa`.

Texts are compared after `normalised`, as the question-answering benchmarks do it: people and
networks write "Two cats." and "the 2 cats" for the same answer. Information is in nats.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bella.errors import BellaError

TokenValues = Float[Tensor, "batch length"]
Lengths = Int[Tensor, " batch"]

ARTICLES = re.compile(r"\b(a|an|the)\b")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {name: str(number) for number, name in enumerate(NAMES)} | {"none": "0"}


# ------------------------------------------------------------ tokens


def token_nll(token_log_probs: TokenValues, lengths: Lengths) -> float:
    """Mean negative log-probability of the tokens that count, in nats a token.

    Its exponential is the perplexity.

    Args:
        token_log_probs: log p(y_t | y_<t, x).
        lengths: how many of each row's tokens count, from its first on.

    Raises:
        BellaError: lengths that do not fit, or no token at all.
    """
    counted = _counted(token_log_probs, lengths)
    if not counted.any():
        raise BellaError("There are no tokens to measure: every answer is empty.")
    return -token_log_probs[counted].double().mean().item()


def answer_entropy(token_entropy: TokenValues, lengths: Lengths) -> Float[Tensor, " batch"]:
    """(1/L) sum_t H[p(y_t | y_<t, x)] of each answer, over its L tokens (paper, appendix F).

    NaN for an answer without tokens.

    Raises:
        BellaError: lengths that do not fit.
    """
    counted = _counted(token_entropy, lengths)
    return token_entropy.where(counted, 0).sum(1) / lengths


def _counted(values: TokenValues, lengths: Lengths) -> Tensor:
    longest = values.shape[1] if values.dim() == 2 else -1
    if values.dim() != 2 or lengths.shape != values.shape[:1]:
        raise BellaError(
            f"Values of shape {tuple(values.shape)} and lengths of shape {tuple(lengths.shape)} "
            "are not (batch, length) and (batch,)."
        )
    if lengths.is_floating_point() or bool(((lengths < 0) | (lengths > longest)).any()):
        raise BellaError(f"Lengths must be whole numbers from 0 to {longest}.")
    return torch.arange(longest, device=values.device) < lengths[:, None]


# ------------------------------------------------------------ answers


def normalised(text: str) -> str:
    """A text without what makes no difference to an answer.

    Lower case, no punctuation but inside numbers (1,000 and 2.5), no articles, single spaces, and
    numbers up to ten as digits.

    Source:
        Antol et al., VQA: Visual Question Answering, ICCV 2015, section 3 (how answers are
        compared); Rajpurkar et al., SQuAD, EMNLP 2016, section 6.1, has the same without numbers.
    """
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    kept = "".join(c if c == "." or c not in string.punctuation else _beside(c) for c in text)
    words = [NUMBERS.get(word, word) for word in ARTICLES.sub(" ", kept).split()]
    return " ".join(words)


def _beside(mark: str) -> str:
    """What stands for a mark: nothing inside a word (it's), a space between words (red-brown)."""
    return "" if mark == "'" else " "


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of answers that are their reference, both `normalised`.

    Raises:
        BellaError: not one reference an answer, or none at all.
    """
    _pairs(answers, references)
    return sum(
        normalised(a) == normalised(b) for a, b in zip(answers, references, strict=True)
    ) / len(answers)


def _pairs(answers: Sequence[str], others: Sequence[object]) -> None:
    if isinstance(answers, str) or len(answers) != len(others):
        raise BellaError(
            f"There are {len(answers)} answers and {len(others)} to compare them with: give lists "
            "of the same length."
        )
    if not answers:
        raise BellaError("There are no answers to measure: the data are empty.")
