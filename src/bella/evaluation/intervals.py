"""How sure the AUROCs of `bella.evaluate` are: bootstrap intervals, by the same names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bella import metrics
from bella.evaluation.evaluate import flat_name, novelty_of
from bella.prediction.predictive import Predictive

Interval = tuple[float, float]


def auroc_intervals(
    predictive: Predictive,
    labels: Tensor,
    *,
    ood: Mapping[str, tuple[Predictive, Tensor]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """95% intervals of the AUROCs that `evaluate_predictive` gives, over other examples.

    Args:
        predictive: as of `evaluate_predictive`.
        labels: as of it.
        ood: as of it.
        resamples: of the bootstrap.
        seed: of its draws.

    Returns:
        Low and high by the figures' names; NaN where the figure itself is.

    Raises:
        BellaError: as `evaluate_predictive`.
    """
    predictive, labels = predictive.counted(labels)
    wrong = predictive.predictions != labels
    found = {
        f"auroc_errors_{name}": _interval(score, wrong, name, resamples, seed)
        for name, score in _scores_of_errors(predictive).items()
    }
    for part, (other, truth) in (ood or {}).items():
        other, _ = other.counted(truth)
        outside = torch.arange(len(predictive) + len(other)) >= len(predictive)
        theirs = _scores_of_shift(other)
        for name, score in _scores_of_shift(predictive).items():
            if name not in theirs:
                continue
            both = torch.cat([score, theirs[name]])
            found[flat_name(part, f"auroc_{name}")] = _interval(
                both, outside, name, resamples, seed
            )
    return found


def _scores(predictive: Predictive) -> dict[str, Tensor]:
    return {"entropy": predictive.entropy.cpu(), "mi": predictive.mutual_information.cpu()}


def _scores_of_errors(predictive: Predictive) -> dict[str, Tensor]:
    return _scores(predictive) | {"confidence": 1 - predictive.confidence.cpu()}


def _scores_of_shift(predictive: Predictive) -> dict[str, Tensor]:
    far = {} if predictive.distance is None else {"distance": predictive.distance.cpu()}
    return _scores(predictive) | {"novelty": novelty_of(predictive).cpu()} | far


def _interval(score: Tensor, positive: Tensor, name: str, resamples: int, seed: int) -> Interval:
    if name == "mi" and not bool((score > 0).any()):  # one network disputes nothing
        return float("nan"), float("nan")
    return metrics.auroc_interval(score, positive.cpu(), resamples=resamples, seed=seed)
