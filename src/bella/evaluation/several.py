"""The figures of several labels at once, and of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bella import metrics
from bella.metrics import labels as of_labels
from bella.metrics import regression
from bella.prediction.labels import MultiLabelPredictive
from bella.prediction.numbers import GaussianPredictive


def label_figures(predictive: MultiLabelPredictive, labels: Tensor) -> dict[str, float]:
    """What single labels do not say.

    Returns:
        ``exact_match``, the share of examples all of whose labels are right; ``f1_micro``,
        ``f1_macro`` and ``auroc_macro`` (see `bella.metrics.labels`).
    """
    probs, truth = predictive.label_probs.flatten(0, -2), labels.flatten(0, -2)
    micro, macro = of_labels.f1(probs, truth)
    return {
        "exact_match": of_labels.exact_match(probs, truth),
        "f1_micro": micro,
        "f1_macro": macro,
        "auroc_macro": of_labels.label_auroc(probs, truth),
    }


def number_figures(predictive: GaussianPredictive, labels: Tensor) -> dict[str, float]:
    """The figures of predicted numbers.

    Returns:
        ``rmse``, ``mae`` and ``crps`` in the numbers' units, ``r2``; ``nll`` in nats;
        ``calibration_error`` of central intervals, how much ``coverage_50``, ``_90`` and ``_95``
        hold, and the mean ``width_90``; the mean ``std``, ``entropy`` and ``mutual_information``;
        ``spearman_errors_std`` and ``spearman_errors_mi``, how well each uncertainty ranks the
        absolute errors (the latter NaN where no particle disputes anything).

    Raises:
        BellaError: labels of another shape, or none that counts.
    """
    predictive, y = predictive.counted(labels)
    mean, errors = predictive.mean, (predictive.mean - y).abs()
    regression.check(mean, y)
    ranks = predictive.cdf(y)
    low, high = predictive.interval(0.9)
    mi = predictive.mutual_information
    parts = predictive.particle_means, predictive.particle_variances, predictive.weights
    disputed = bool((mi > 0).any())
    return {
        "rmse": regression.rmse(mean, y),
        "mae": regression.mae(mean, y),
        "r2": regression.r2(mean, y),
        "nll": predictive.nll(y),
        "crps": regression.crps(y, *parts),
        "calibration_error": regression.calibration_error(ranks),
        **{f"coverage_{c}": regression.coverage(ranks, c / 100) for c in (50, 90, 95)},
        "width_90": float((high - low).mean()),
        "std": float(predictive.std.mean()),
        "entropy": float(predictive.entropy.mean()),
        "mutual_information": float(mi.mean()),
        "spearman_errors_std": regression.spearman(predictive.std, errors),
        "spearman_errors_mi": regression.spearman(mi, errors) if disputed else math.nan,
    }


def shifted_number_figures(
    predictive: GaussianPredictive, labels: Tensor, other: GaussianPredictive, truth: Tensor
) -> dict[str, float]:
    """The figures of one other set of numbers.

    Args:
        predictive: on in-distribution data.
        labels: of the in-distribution data.
        other: on the other data.
        truth: their labels; infinite where there are none.

    Returns:
        ``auroc_entropy`` and ``auroc_mi``, how well each uncertainty tells the two sets apart; the
        means ``entropy`` and ``mutual_information``; with labels also ``rmse``, ``nll`` and
        ``calibration_error``.
    """
    predictive, _ = predictive.counted(labels)
    other, truth = other.counted(truth)
    mi, other_mi = predictive.mutual_information, other.mutual_information
    disputed = bool((mi > 0).any()) or bool((other_mi > 0).any())
    found = {
        "auroc_entropy": metrics.auroc_between(predictive.entropy, other.entropy),
        "auroc_mi": metrics.auroc_between(mi, other_mi) if disputed else math.nan,
        "entropy": float(other.entropy.mean()),
        "mutual_information": float(other_mi.mean()),
    }
    if bool(torch.isfinite(truth).all()):
        found["rmse"] = regression.rmse(other.mean, truth)
        found["nll"] = other.nll(truth)
        found["calibration_error"] = regression.calibration_error(other.cdf(truth))
    return found
