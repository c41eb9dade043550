"""Prediction sets that hold the right class as often as promised (split conformal prediction).

A score s(x, y) says how little class y fits what was predicted of x. On n examples that were not
trained on, the threshold is the ⌈(n + 1)(1 - miss)⌉-th smallest score of a right class, and

    C(x) = {y : s(x, y) <= threshold}    holds the right class with probability >= 1 - miss,

for any network, if the new example and the n are exchangeable: drawn alike, in any order. Under a
shift nothing is promised, and `coverage_range` says when the promise is seen to be broken.

scores    LAC:  1 - p_y                              the smallest sets on average
          APS:  the probability of all classes that are likelier than y, and p_y (or a part of it,
                u p_y with u uniform in [0, 1)): sets grow where the network is unsure
          RAPS: APS + penalty · max(0, rank of y - free): without long tails

Source:
    Vovk, Gammerman and Shafer 2005; Sadinle, Lei and Wasserman 2019 (LAC); Romano, Sesia and
    Candès 2020 (APS); Angelopoulos, Bates, Malik and Jordan 2021 (RAPS). The range of the coverage:
    Angelopoulos and Bates 2023, A gentle introduction, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bella.errors import BellaError, nearest, require
from bella.metrics import Labels, Probs, check, check_probs


class TooFewError(BellaError):
    """Too few calibration examples for what is to be promised."""


Uniform = Float[Tensor, " batch"] | None
"""A uniform draw in [0, 1) for each example, that decides how much of its own probability a class
counts, so that sets are as small as promised. ``None`` counts all of it: sets are larger."""


def lac(probs: Probs, uniform: Uniform = None) -> Float[Tensor, "batch classes"]:
    """1 - p of each class."""
    return 1 - probs.double()


def aps(probs: Probs, uniform: Uniform = None) -> Float[Tensor, "batch classes"]:
    """The probability of all classes that are likelier, and of each class itself."""
    before, _ = _likelier(probs)
    own = probs.double()
    return before + (own if uniform is None else uniform.double()[:, None] * own)


def _likelier(
    probs: Probs,
) -> tuple[Float[Tensor, "batch classes"], Int[Tensor, "batch classes"]]:
    """Of each class, the probability and the number of the classes that are likelier than it."""
    ranked, order = probs.double().sort(descending=True, dim=-1)
    place = torch.arange(probs.shape[1], device=probs.device).expand_as(order)
    # Classes of one probability have the same ones before them, whatever order they came in.
    first = torch.ones_like(order, dtype=torch.bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    start = torch.where(first, place, 0).cummax(-1).values
    before = (ranked.cumsum(-1) - ranked).gather(-1, start)
    empty = torch.zeros_like(before)
    return empty.scatter(-1, order, before), torch.zeros_like(order).scatter(-1, order, start)


@dataclass(frozen=True)
class ConformalSets:
    """Prediction sets with a threshold from calibration examples; see `conformal`.

    Attributes:
        score: ``lac``, ``aps`` or ``raps``.
        miss: how often a set may lack the right class.
        threshold: the largest score in a set.
        examples: how many the threshold is from.
        penalty: of `raps`, for each rank beyond ``free``.
        free: ranks without a penalty.
        randomised: whether the sets take a uniform draw an example.
    """

    score: str
    miss: float
    threshold: float
    examples: int
    penalty: float = 0.0
    free: int = 0
    randomised: bool = False

    def sets(self, probs: Probs, uniform: Uniform = None) -> Bool[Tensor, "batch classes"]:
        """Which classes are in each example's set.

        A set may be empty: no class fits. Those of ``aps`` and ``raps`` without draws hold at least
        the likeliest class, which would otherwise be missing where it is surest.

        Args:
            probs: (batch, classes), of the same predictive as in the calibration.
            uniform: fresh draws, if and only if the calibration had some.

        Raises:
            BellaError: values that are no probabilities; draws where there were none, or none where
                there were some.
        """
        if (uniform is not None) != self.randomised:
            raise BellaError(
                "Uniform draws belong to calibration and prediction alike: give them to both, or "
                "to none."
            )
        check_probs(probs)
        found = self.scores(probs, uniform) <= self.threshold
        if self.score != "lac" and not self.randomised:
            _, likelier = _likelier(probs)
            found |= likelier == 0
        return found

    def scores(self, probs: Probs, uniform: Uniform = None) -> Float[Tensor, "batch classes"]:
        """How little each class fits."""
        found = SCORES[self.score](probs, uniform)
        if self.penalty:
            _, likelier = _likelier(probs)
            found = found + self.penalty * (likelier + 1 - self.free).clamp_min(0)
        return found


SCORES: dict[str, Callable[..., Tensor]] = {"lac": lac, "aps": aps, "raps": aps}


def conformal(
    probs: Probs,
    labels: Labels,
    *,
    miss: float = 0.1,
    score: str = "lac",
    penalty: float = 0.01,
    free: int = 1,
    uniform: Uniform = None,
) -> ConformalSets:
    """Prediction sets that hold the right class with probability 1 - ``miss``.

    Args:
        probs: (batch, classes), predicted for calibration examples: none that was trained on, nor,
            strictly, that chose anything; drawn as those to come will be.
        labels: their class numbers.
        miss: how often a set may lack the right class, in (0, 1).
        score: ``lac``, ``aps`` or ``raps``.
        penalty: of ``raps`` alone.
        free: ranks without a penalty, of ``raps`` alone.
        uniform: a draw in [0, 1) for each example, for ``aps`` and ``raps``.

    Raises:
        BellaError: an unknown score; a ``miss`` out of range; and as `bella.metrics.check`.
        TooFewError: a ``miss`` below 1 / (n + 1), which no n examples can promise.
    """
    if score not in SCORES:
        raise BellaError(f"score={score!r} is unknown: choose {nearest(score, SCORES)}.")
    if not 0 < miss < 1:
        raise BellaError(f"miss={miss}: give the share of sets that may be wrong, in (0, 1).")
    if not (penalty >= 0 and free >= 0):
        raise BellaError(f"penalty={penalty}, free={free}: neither may be below 0.")
    check(probs, labels)
    n = len(labels)
    place = math.ceil((n + 1) * (1 - miss) - 1e-9)
    if place > n:
        raise TooFewError(
            f"{n} calibration examples cannot promise sets that miss at most {miss:g}: give at "
            f"least {math.ceil(1 / miss - 1e-9) - 1}."
        )
    if uniform is not None and score == "lac":
        raise BellaError("score='lac' takes no uniform draws: leave them out, or choose 'aps'.")
    if uniform is not None and uniform.shape != labels.shape:
        raise BellaError(
            f"Uniform draws of shape {tuple(uniform.shape)} do not fit {n} examples: one each."
        )
    made = ConformalSets(
        score,
        miss,
        math.inf,
        n,
        penalty if score == "raps" else 0.0,
        free if score == "raps" else 0,
        uniform is not None,
    )
    right = made.scores(probs, uniform).gather(1, labels.long()[:, None]).flatten()
    return ConformalSets(**{**made.__dict__, "threshold": float(right.sort().values[place - 1])})


def set_figures(sets: Bool[Tensor, "batch classes"], labels: Labels) -> dict[str, float]:
    """What sets are worth on labelled examples.

    Returns:
        ``coverage``: the share that holds the right class; ``size``: mean number of classes;
        ``single`` and ``empty``: shares of sets with one class and with none.

    Raises:
        BellaError: labels that do not fit, or no examples.
    """
    check(sets.double(), labels)
    held = sets.gather(1, labels.long()[:, None])
    sizes = sets.sum(-1).double()
    return {
        "coverage": held.double().mean().item(),
        "size": sizes.mean().item(),
        "single": (sizes == 1).double().mean().item(),
        "empty": (sizes == 0).double().mean().item(),
    }


def coverage_range(made: ConformalSets, examples: int, level: float = 0.99) -> tuple[float, float]:
    """Where the coverage of so many new exchangeable examples lies with a probability ``level``.

    It is spread by both samples: Binomial(examples, Beta(k, n + 1 - k)) / examples, k the place of
    the threshold. A coverage below it says that the new examples are not drawn as those of the
    calibration were.

    Raises:
        BellaError: no examples, or a level out of range.
    """
    if examples < 1 or not 0 < level < 1:
        raise BellaError(f"examples={examples}, level={level}: at least 1, and in (0, 1).")
    n = made.examples
    place = math.ceil((n + 1) * (1 - made.miss) - 1e-9)
    spread = require("scipy.stats", "fit").betabinom(examples, place, n + 1 - place)
    tail = (1 - level) / 2
    return float(spread.ppf(tail)) / examples, float(spread.ppf(1 - tail)) / examples
