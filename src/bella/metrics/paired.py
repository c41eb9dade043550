"""Paired tests: what two methods differ by on the same splits with the same seeds.

A method's figure moves with the split and the seed, and another method's moves along with it. So
their differences, seed by seed, say more than their two spreads: d_j = a_j - b_j, j = 1 ... J, and

    t = mean(d) / sqrt(var(d) (1/J + overlap)),    J - 1 degrees of freedom.

``overlap`` is 0 where the differences are independent. Where each seed splits one pool of data
anew, the training parts share most of their examples and the differences are alike; without a
correction such a test finds far too much. It is then the size of the test part over that of the
training part (Nadeau and Bengio). Where all seeds share one test part, and two of them a share r of
their training examples, their differences have a correlation of about r (exactly, where a figure is
a mean over the training examples), so that the variance of their mean is σ² (r + (1 - r)/J) where
var(d) is about σ² (1 - r): ``overlap`` is r / (1 - r). Such a test is of that test part: what other
test examples would show it does not say.

Source:
    Nadeau and Bengio 2003, Inference for the generalization error, eq. 9 (the corrected resampled
    t test); Holm 1979, A simple sequentially rejective multiple test procedure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bella.errors import BellaError, require

LEVEL = 0.05
"""Of a claim: how often one is made of nothing."""


@dataclass(frozen=True)
class Paired:
    """How one method's figure differs from another's.

    Attributes:
        mean: of the differences, first minus second, in the figure's unit.
        low: end of the interval that holds the true mean difference with 1 - `LEVEL`; NaN where the
            differences are all the same and so show no spread.
        high: the other end.
        higher: on how many seeds the first was higher.
        lower: on how many lower.
        pairs: seeds on which both have the figure.
        p: two-sided p value; that of the sign test where the differences show no spread.
    """

    mean: float
    low: float
    high: float
    higher: int
    lower: int
    pairs: int
    p: float


def paired_test(first: Sequence[float], second: Sequence[float], *, overlap: float = 0.0) -> Paired:
    """The paired t test of two methods' figures over the same seeds.

    Args:
        first: one method's figure with each seed.
        second: the other's, seed by seed; where one of the two is NaN the seed is left out.
        overlap: of the splits: 0 where seeds share one split or their data are independent, else
            (test examples) / (training examples), or `overlap_of_draws`; see the module.

    Raises:
        BellaError: not as many figures of one as of the other, fewer than two pairs of them, or an
            ``overlap`` below 0.
    """
    if len(first) != len(second):
        raise BellaError(
            f"{len(first)} figures of one method and {len(second)} of the other are not pairs: "
            "give one of each a seed, in the same order."
        )
    if not overlap >= 0:
        raise BellaError(f"overlap={overlap}: give test over training examples, at least 0.")
    gaps = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    gaps = gaps[gaps.isfinite()]
    pairs = len(gaps)
    if pairs < 2:
        raise BellaError(f"{pairs} pairs of figures show no spread: run at least two seeds.")
    mean, spread = float(gaps.mean()), float(gaps.std())
    higher, lower = int((gaps > 0).sum()), int((gaps < 0).sum())
    if spread <= 1e-12 * abs(mean):  # a share of few examples may differ by the same each time
        p = 2.0 ** (1 - pairs) if mean else 1.0
        low, high = (math.nan, math.nan) if mean else (0.0, 0.0)
        return Paired(mean, low, high, higher, lower, pairs, p)
    student = require("scipy.stats", "fit").t(pairs - 1)
    error = spread * math.sqrt(1 / pairs + overlap)
    reach = error * float(student.ppf(1 - LEVEL / 2))
    p = 2 * float(student.sf(abs(mean) / error))
    return Paired(mean, mean - reach, mean + reach, higher, lower, pairs, p)


def overlap_of_draws(shared: float) -> float:
    """``overlap`` of seeds with one test part: r / (1 - r).

    Args:
        shared: r, the share of its training examples that a seed has in common with another.

    Raises:
        BellaError: it is no share, or all of them.
    """
    if not 0 <= shared < 1:
        raise BellaError(f"shared={shared} training examples: give a share from 0 to below 1.")
    return shared / (1 - shared)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family of claims, raised so that with probability 1 - α none below α is of
    nothing: the smallest times how many they are, the next times one less, and none below another
    that it follows.

    Raises:
        BellaError: a value that is no probability.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise BellaError(f"p={p} is no probability: give p values from 0 to 1.")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = so_far
    return adjusted


def needed(pairs: int, claims: int) -> float:
    """How many standard errors a difference must be from 0 to count as one of so many claims."""
    student = require("scipy.stats", "fit").t(pairs - 1)
    return float(student.isf(LEVEL / 2 / claims))
