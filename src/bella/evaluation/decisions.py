"""What to do with the uncertainty: prediction sets and referrals, promised on calibration examples.

One calibration makes both; both are then tried on every other set of examples, so that a promise
that a shift breaks is seen to be broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bella.evaluation.abstention import promise
from bella.evaluation.conformal import TooFewError, conformal, coverage_range, set_figures
from bella.prediction.predictive import Predictive

Part = tuple[Predictive, Tensor]

BROKEN = 0.005
"""A promise counts as broken on data that would break it as much with a smaller probability."""


def decisions(
    calibration: Part,
    parts: Mapping[str, Part],
    *,
    miss: float = 0.1,
    score: str = "lac",
    risk: float = 0.05,
    delta: float = 0.1,
) -> dict[str, Any]:
    """Prediction sets and a threshold for referrals, and what each is worth on other examples.

    Args:
        calibration: what `bella.evaluation.evaluate.collect` gives for examples that were not
            trained on.
        parts: by name, the same for others, all labelled.
        miss: see `bella.evaluation.conformal.conformal`.
        score: likewise.
        risk: see `bella.evaluation.abstention.promise`; the uncertainty is the entropy.
        delta: likewise.

    Returns:
        ``sets``: ``score``, ``miss``, ``threshold``, ``examples`` and, by name under ``parts``,
        `set_figures` with ``low`` and ``high`` (`coverage_range`) and ``broken``. ``referrals``:
        ``risk``, ``delta``, ``threshold`` (entropy in nats), ``referred`` (of the calibration
        examples), ``examples`` and, under ``parts``, `Promise.check` with ``broken``. Either is
        ``{"refused": sentence}`` where so few examples cannot promise it.

    Raises:
        BellaError: labels that do not fit; arguments out of range.
    """
    told, labels = calibration[0].counted(calibration[1])
    counted = {name: other.counted(truth) for name, (other, truth) in parts.items()}
    return {
        "sets": _sets(told, labels, counted, miss, score),
        "referrals": _referrals(told, labels, counted, risk, delta),
    }


def _sets(
    told: Predictive, labels: Tensor, parts: Mapping[str, Part], miss: float, score: str
) -> dict[str, Any]:
    try:
        made = conformal(told.probs, labels, miss=miss, score=score)
    except TooFewError as error:
        return {"refused": str(error)}
    found = {}
    for name, (other, truth) in parts.items():
        figures = set_figures(made.sets(other.probs), truth)
        low, high = coverage_range(made, len(truth), 1 - 2 * BROKEN)
        found[name] = figures | {"low": low, "high": high, "broken": figures["coverage"] < low}
    threshold = made.threshold
    return {
        "score": score,
        "miss": miss,
        "threshold": threshold,
        "examples": made.examples,
        "parts": found,
    }


def _referrals(
    told: Predictive, labels: Tensor, parts: Mapping[str, Part], risk: float, delta: float
) -> dict[str, Any]:
    try:
        made = promise(told.probs, labels, told.entropy, risk=risk, delta=delta)
    except TooFewError as error:
        return {"refused": str(error)}
    found = {}
    for name, (other, truth) in parts.items():
        figures = made.check(other.probs, truth, other.entropy)
        found[name] = figures | {"broken": figures["p"] < BROKEN}
    return {
        "risk": risk,
        "delta": delta,
        "threshold": made.threshold,
        "referred": 1 - made.coverage,
        "examples": made.examples,
        "parts": found,
    }
