"""Figures of several labels at once: what a figure of single labels does not say."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from bella.errors import BellaError
from bella.metrics.classification import auroc, check_labels

LabelProbs = Float[Tensor, "batch labels"]
Labels = Integer[Tensor, "batch labels"]

IGNORED = -100
"""Label that does not count."""


def _checked(probs: LabelProbs, labels: Labels) -> tuple[Tensor, Tensor]:
    if probs.shape != labels.shape or probs.dim() != 2:
        raise BellaError(
            f"Probabilities of shape {tuple(probs.shape)} and labels of shape "
            f"{tuple(labels.shape)} are not both (batch, labels)."
        )
    if not labels.numel():
        raise BellaError("There are no examples to measure: the data are empty.")
    check_labels(labels, 2, IGNORED)
    return probs >= 0.5, labels != IGNORED


def exact_match(probs: LabelProbs, labels: Labels) -> float:
    """Share of examples all of whose labels that count are told right."""
    said, counted = _checked(probs, labels)
    wrong = ((said != (labels == 1)) & counted).any(1)[counted.any(1)]
    return math.nan if not len(wrong) else 1 - wrong.double().mean().item()


def f1(probs: LabelProbs, labels: Labels) -> tuple[float, float]:
    """F1 over all labels together (micro), and its mean over the labels that occur (macro)."""
    said, counted = _checked(probs, labels)
    there = labels == 1
    hits = (said & there & counted).double().sum(0)
    missed = ((said != there) & counted).double().sum(0)
    occurs = (there & counted).any(0)

    def score(right: Tensor, wrong: Tensor) -> Tensor:
        whole = 2 * right + wrong
        return torch.where(whole > 0, 2 * right / whole, math.nan)

    macro = score(hits, missed)[occurs]
    return score(hits.sum(), missed.sum()).item(), macro.mean().item() if len(macro) else math.nan


def label_auroc(probs: LabelProbs, labels: Labels) -> float:
    """Mean over labels of the probability that an example with the label scores above one without.

    Over the labels that some examples have and others have not; NaN where there are none.
    """
    _, counted = _checked(probs, labels)
    found = [
        auroc(probs[rows, k], labels[rows, k] == 1) for k, rows in enumerate(counted.unbind(1))
    ]
    known = [value for value in found if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
