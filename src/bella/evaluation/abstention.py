"""Abstention at a promised risk: uncertain examples are referred, the rest is right as promised.

Examples above a threshold of uncertainty are referred (to a person, another test). Of the m below
it k were wrong, on n examples that were not trained on, and

    P(Bin(m, risk) <= k) <= δ / PLACES    rejects "more than ``risk`` of the answers are wrong"

(Clopper and Pearson's bound). The thresholds that are tested are the sorted uncertainties at
`PLACES` places that n, risk and δ fix: given the value at a place, the examples below it are
independent draws from below that value, so that each test is exact, whatever the network, the score
and how the risk grows with it. The largest coverage that rejects is taken. With
probability 1 - δ over the calibration examples the promise then holds for new ones that are drawn
independently as they were; after a shift nothing is promised, and `Promise.check` says when it is
seen to be broken.

Source:
    Geifman and El-Yaniv 2017, Selective classification for deep neural networks, section 3;
    Angelopoulos, Bates, Candès, Jordan and Lei 2021, Learn then test (Bonferroni over thresholds);
    Clopper and Pearson 1934.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bella.errors import BellaError, require
from bella.evaluation.conformal import TooFewError
from bella.metrics import Labels, Probs, Scores, check

PLACES = 10
"""Thresholds that are tested, and that share δ."""


@dataclass(frozen=True)
class Promise:
    """A threshold of uncertainty below which answers are right as often as promised.

    Attributes:
        risk: the share of wrong answers that is promised not to be exceeded.
        delta: the probability that the promise is wrong, over calibrations.
        threshold: answered is what is less uncertain than this; -∞ where nothing can be promised,
            ∞ where everything is answered.
        coverage: share of the calibration examples that is answered.
        examples: how many those were.
    """

    risk: float
    delta: float
    threshold: float
    coverage: float
    examples: int

    @property
    def kept(self) -> bool:
        """Whether there is a threshold that can be promised for."""
        return self.coverage > 0

    def answers(self, uncertainty: Scores) -> Bool[Tensor, " batch"]:
        """Which examples are answered; the others are referred."""
        return uncertainty.double() < self.threshold

    def check(self, probs: Probs, labels: Labels, uncertainty: Scores) -> dict[str, float]:
        """What the promise is worth on other labelled examples.

        Returns:
            ``referred``: share of the examples; ``risk``: share of wrong answers among the others
            (NaN where all are referred); ``answered`` and ``wrong``: their numbers; ``p``: of as
            many wrong answers or more, were the promise kept. A small one says that it is broken.

        Raises:
            BellaError: as `bella.metrics.check`, or an uncertainty of another shape.
        """
        wrong = _wrong(probs, labels, uncertainty)
        answered = self.answers(uncertainty)
        count, errors = int(answered.sum()), int(wrong[answered].sum())
        binomial = require("scipy.stats", "fit").binom(count, self.risk)
        return {
            "referred": 1 - count / len(labels),
            "risk": errors / count if count else math.nan,
            "answered": count,
            "wrong": errors,
            "p": float(binomial.sf(errors - 1)) if count else 1.0,
        }


def promise(
    probs: Probs, labels: Labels, uncertainty: Scores, *, risk: float = 0.02, delta: float = 0.1
) -> Promise:
    """The largest coverage whose answers are promised to be wrong at most ``risk`` of the time.

    Args:
        probs: (batch, classes), predicted for calibration examples: none that was trained on.
        labels: their class numbers.
        uncertainty: any score that grows with doubt: `Predictive.entropy`, 1 - max p, ...
        risk: the share of wrong answers that may not be exceeded, in (0, 1).
        delta: the probability that the promise may be wrong, in (0, 1).

    Raises:
        BellaError: ``risk`` or ``delta`` out of range; and as `bella.metrics.check`.
        TooFewError: fewer examples than could promise it without one wrong answer.
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise BellaError(f"{name}={value}: give a share in (0, 1).")
    wrong = _wrong(probs, labels, uncertainty)
    n, least = len(labels), fewest(risk, delta)
    if n < least:
        raise TooFewError(
            f"{n} calibration examples cannot promise a risk of {risk:g} with δ={delta:g}: without "
            f"one wrong answer it takes {least}."
        )
    score, order = uncertainty.detach().double().cpu().sort()
    errors = torch.cat([torch.zeros(1, dtype=torch.long), wrong[order].long().cumsum(0)])
    binomial = require("scipy.stats", "fit").binom
    for place in reversed(_places(n, least)):
        threshold = math.inf if place == n else float(score[place])
        answered = int((score < threshold).sum())
        if answered and binomial.cdf(int(errors[answered]), answered, risk) <= delta / PLACES:
            return Promise(risk, delta, threshold, answered / n, n)
    return Promise(risk, delta, -math.inf, 0.0, n)


def fewest(risk: float, delta: float) -> int:
    """How many answers without an error it takes to promise a risk."""
    return math.ceil(math.log(delta / PLACES) / math.log1p(-risk) - 1e-9)


def risk_bound(wrong: int, answered: int, delta: float = 0.1) -> float:
    """The largest share of wrong answers that so many of them leave possible, with probability
    1 - δ: Clopper and Pearson's upper bound, for a rule that these examples did not choose.

    Raises:
        BellaError: more wrong than answered, or ``delta`` out of range.
    """
    if not 0 <= wrong <= answered or answered < 1 or not 0 < delta < 1:
        raise BellaError(
            f"wrong={wrong}, answered={answered}, delta={delta}: give counts with 0 <= wrong <= "
            "answered, answered >= 1, and a δ in (0, 1)."
        )
    if wrong == answered:
        return 1.0
    return float(require("scipy.stats", "fit").beta.ppf(1 - delta, wrong + 1, answered - wrong))


def _places(n: int, least: int) -> list[int]:
    """How many examples lie below each threshold that is tested: evenly from the fewest that can
    reject to all."""
    return [least + (n - least) * step // (PLACES - 1) for step in range(PLACES)]


def _wrong(
    probs: Probs, labels: Labels, uncertainty: Float[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    check(probs, labels)
    if uncertainty.shape != labels.shape or not bool(torch.isfinite(uncertainty).all()):
        raise BellaError(
            f"Uncertainties of shape {tuple(uncertainty.shape)} must be finite, one for each of "
            f"{len(labels)} examples."
        )
    return (probs.argmax(-1) != labels.long()).cpu()
