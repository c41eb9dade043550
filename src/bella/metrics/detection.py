"""How well a score notices what it should, and how sure that is.

What is to be noticed (wrong answers, shifted inputs) is *positive* and should score higher.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bella.errors import BellaError
from bella.metrics.classification import Scores, auroc

ENTRIES = 10_000_000
"""Counts of a resample held at once: 80 MB."""


def fpr_at_tpr(score: Scores, positive: Bool[Tensor, " batch"], tpr: float = 0.95) -> float:
    """Share of false alarms (negatives) where so large a share of the positives is noticed.

    The alarm goes off from the highest threshold on that notices them; examples that score exactly
    that set it off. NaN where one of the two kinds is missing.

    Args:
        score: of each example, higher for what is to be noticed.
        positive: what is to be noticed.
        tpr: the share to notice, in (0, 1].

    Raises:
        BellaError: as `auroc`, or a ``tpr`` out of range.
    """
    if not 0 < tpr <= 1:
        raise BellaError(f"tpr={tpr}: give the share of positives to notice, in (0, 1].")
    positive = positive.bool()
    if math.isnan(auroc(score, positive)):
        return math.nan
    score = score.detach().double()
    noticed = score[positive].sort(descending=True).values
    threshold = noticed[math.ceil(tpr * len(noticed) - 1e-9) - 1]
    return float((score[~positive] >= threshold).double().mean())


def auroc_interval(
    score: Scores,
    positive: Bool[Tensor, " batch"],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of `auroc` over other examples of the same two kinds: a percentile bootstrap.

    As many positives and as many negatives as there are are drawn anew, with replacement. It says
    nothing of another training. NaN where one kind is missing.

    Args:
        score: as of `auroc`.
        positive: as of `auroc`.
        level: the probability that the interval is to hold.
        resamples: how many times to draw.
        seed: of the draws.

    Source:
        Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.

    Raises:
        BellaError: as `auroc`, or a ``level`` or number of resamples out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise BellaError(
            f"level={level}, resamples={resamples}: give a level in (0, 1) and at least 1 resample."
        )
    positive = positive.bool()
    if math.isnan(auroc(score, positive)):
        return math.nan, math.nan
    # Of each distinct score: how often it was drawn among the positives, and among the negatives.
    values, place = score.detach().double().cpu().unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    kinds = [place[positive.cpu()], place[~positive.cpu()]]
    at_once = max(1, ENTRIES // len(place))
    found = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        ups, downs = (_counts(kind, rows, len(values), generator) for kind in kinds)
        below = downs.cumsum(1) - downs / 2  # of equal scores, a half
        found.append((ups * below).sum(1) / (len(kinds[0]) * len(kinds[1])))
    tail = (1 - level) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.double))
    return float(low), float(high)


def _counts(
    kind: Tensor, rows: int, values: int, generator: torch.Generator
) -> Float[Tensor, "rows values"]:
    drawn = kind[torch.randint(len(kind), (rows, len(kind)), generator=generator)]
    ones = torch.ones((), dtype=torch.double).expand_as(drawn)
    return torch.zeros(rows, values, dtype=torch.double).scatter_add_(1, drawn, ones)
