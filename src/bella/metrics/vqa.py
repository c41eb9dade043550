"""Figures of answers to questions about pictures, beside what several people answered.

VQA v2 has ten people's answers to every question, and counts an answer by how many of them gave it;
answers are compared as its evaluation does it. Information is in nats, shares are from 0 to 1.

Source: Antol et al., VQA: Visual Question Answering, ICCV 2015; Goyal et al., CVPR 2017 (v2); the
figures by kind of answer and by entropy: Doan et al., Bella, section 5.7 and appendix F.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bella.errors import BellaError
from bella.metrics.language import NUMBERS

Thresholds = Float[Tensor, " thresholds"]

TYPES = ("yes/no", "number", "other")
"""Kinds of answers, as VQA v2 has them (``answer_type``)."""
THRESHOLDS = tuple(step / 10 for step in range(1, 9))
"""The paper's, in nats (appendix F)."""

# ------------------------------------------------------------ comparing answers

MARKS = ';/[]"{}()=+\\_-><@`,?!'
BETWEEN_DIGITS = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = ("a", "an", "the")
SHORT = {
    "n't": (
        "ai are ca could did does do had has have is might must need ought sha should was were wo "
        "would"
    ),
    "'ve": "could might must not should they we what where who would you",
    "'ll": "how it somebody someone something they what who why you",
    "'s": "he how let she somebody someone that there what when where who why",
    "'d": "he how it somebody someone something there they where who you",
    "'re": "there they what why you",
}
CONTRACTIONS = {
    whole.replace("'", ""): whole
    for whole in (
        *(word + end for end, words in SHORT.items() for word in words.split()),
        *("ma'am", "o'clock", "'twas", "y'all"),
    )
}
"""Contractions by how they are written without their apostrophe; those that are other words then
(well, were, its, id) are none of them."""


def vqa_normalised(text: str) -> str:
    """An answer as VQA's evaluation compares it.

    Punctuation goes: without a trace where it stands beside a space or the text has a number like
    1,000, else a space takes its place. Periods go but before a digit; articles go; words from zero
    (and none) to ten are digits; contractions get the apostrophe that they lack. Small letters,
    single spaces. Unlike `bella.metrics.normalised` it keeps apostrophes and marks such as $.

    Source:
        Rules of the benchmark's own evaluation (visualqa.org/evaluation.html). It leaves people's
        answers as they are where all agree; here every answer is normalised.
    """
    given = text.replace("\n", " ").replace("\t", " ").strip()
    tight = BETWEEN_DIGITS.search(given) is not None
    kept = given
    for mark in MARKS:
        beside = f"{mark} " in given or f" {mark}" in given
        kept = kept.replace(mark, "" if tight or beside else " ")
    words = [NUMBERS.get(word, word) for word in PERIOD.sub("", kept).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_type(answer: str) -> str:
    """The kind of an answer, for data that do not say it: yes/no, a number, or other."""
    word = vqa_normalised(answer)
    if word in ("yes", "no"):
        return TYPES[0]
    return TYPES[1] if re.fullmatch(r"-?\d+(\.\d+)?", word) else TYPES[2]


def votes(people: Sequence[str]) -> list[tuple[str, int]]:
    """The answers that people gave, normalised, and how many gave each; the most frequent first."""
    return Counter(map(vqa_normalised, people)).most_common()


# ------------------------------------------------------------ one question


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """min(#people who said it / 3, 1), averaged over all subsets that leave one person out.

    Of ten people m of whom agree: 0, .3, .6, .9, and 1 from four on.

    Args:
        answer: the network's.
        people: what each person said.

    Raises:
        BellaError: fewer than two people.

    Source:
        Antol et al. 2015, footnote 5: ten choose nine, "to be consistent with human accuracies".
    """
    if isinstance(people, str) or len(people) < 2:
        raise BellaError("Answers of at least two people are needed: one is left out in turn.")
    mine = vqa_normalised(answer)
    said = sum(vqa_normalised(person) == mine for person in people)
    others = len(people) - said
    # One of those who said it is left out, or one of the others.
    without, with_all = min((said - 1) / 3, 1.0), min(said / 3, 1.0)
    return (said * without + others * with_all) / len(people) if said else 0.0


def vqa_exact_match(answer: str, people: Sequence[str]) -> bool:
    """Whether the accuracy is 1 (paper, appendix F)."""
    return vqa_accuracy(answer, people) >= 1 - 1e-9


def human_confidence(people: Sequence[str]) -> float:
    """The share of people who gave the most frequent answer (paper, appendix F).

    Raises:
        BellaError: there are none.
    """
    if isinstance(people, str) or not people:
        raise BellaError("A question needs the answers of several people, as a list.")
    return votes(people)[0][1] / len(people)


def judged(answer: str, people: Sequence[str]) -> dict[str, Any]:
    """``accuracy``, ``exact_match`` and ``human_confidence`` of an answer.

    Where a set has one reference and not several people's answers, an answer is right or wrong, and
    nobody's confidence is known (``None``).

    Raises:
        BellaError: nobody answered.
    """
    if len(people) == 1 and not isinstance(people, str):
        right = vqa_normalised(answer) == vqa_normalised(people[0])
        return {"accuracy": float(right), "exact_match": right, "human_confidence": None}
    sure = human_confidence(people)
    return {
        "accuracy": vqa_accuracy(answer, people),
        "exact_match": vqa_exact_match(answer, people),
        "human_confidence": sure,
    }


# ------------------------------------------------------------ many questions


def by_type(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Figures of all answers and of those of each kind that there are (paper, Tables 5 and 10).

    Args:
        rows: an answer each, with ``type``, ``accuracy``, ``exact_match``, ``entropy`` and
            ``mutual_information``.

    Returns:
        By ``all`` and the kinds of `TYPES`: ``questions``, mean ``accuracy`` and ``exact_match``,
        and the mean entropy and mutual information of right and of wrong answers
        (``entropy_correct``, ``entropy_wrong``, ``mi_correct``, ``mi_wrong``; NaN where there are
        none). Right is what matches exactly.

    Raises:
        BellaError: no answers, or a kind that is unknown.
    """
    if not rows:
        raise BellaError("There are no answers to measure: the data are empty.")
    for row in rows:
        if row["type"] not in TYPES:
            raise BellaError(
                f"An answer is of the type {row['type']!r}: there are {', '.join(TYPES)}."
            )
    groups = {"all": list(rows)}
    groups |= {kind: [row for row in rows if row["type"] == kind] for kind in TYPES}
    return {kind: _figures(some) for kind, some in groups.items() if some}


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    right = [row for row in rows if row["exact_match"]]
    wrong = [row for row in rows if not row["exact_match"]]
    return {
        "questions": len(rows),
        "accuracy": _mean(rows, "accuracy"),
        "exact_match": len(right) / len(rows),
        "entropy_correct": _mean(right, "entropy"),
        "entropy_wrong": _mean(wrong, "entropy"),
        "mi_correct": _mean(right, "mutual_information"),
        "mi_wrong": _mean(wrong, "mutual_information"),
    }


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows) if rows else math.nan


def confidence_by_entropy(
    entropy: Float[Tensor, " batch"],
    confidence: Float[Tensor, " batch"],
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[Thresholds, Thresholds]:
    """Mean human confidence where the network's entropy is low and where it is high.

    Args:
        entropy: of each answer, in nats.
        confidence: of the people who answered the same question.
        thresholds: an entropy above one is high.

    Returns:
        For each threshold the mean over answers of low and of high entropy; NaN where there are
        none (paper, appendix F and figure 6).

    Raises:
        BellaError: shapes that do not fit, or no answers.
    """
    if entropy.dim() != 1 or entropy.shape != confidence.shape or not len(entropy):
        raise BellaError(
            f"Entropies of shape {tuple(entropy.shape)} and confidences of shape "
            f"{tuple(confidence.shape)} are not one of each for every answer."
        )
    high = entropy > torch.as_tensor(thresholds, dtype=entropy.dtype).to(entropy.device)[:, None]
    confidence = confidence.to(entropy.device)

    def mean(chosen: Tensor) -> Tensor:
        return (chosen * confidence).sum(1) / chosen.sum(1)

    return mean(~high), mean(high)
