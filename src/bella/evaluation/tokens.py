"""Figures of tokens, batch by batch: a vocabulary's logits for a whole data set fit nowhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bella import metrics
from bella.errors import BellaError
from bella.evaluation.evaluate import collect
from bella.posterior import Posterior


def token_rows(posterior: Posterior, loader: Iterable[Any], **options: Any) -> dict[str, Tensor]:
    """What the particles say of every token that counts, one after another.

    Args:
        posterior: of a network that predicts tokens.
        loader: batches with labels.
        **options: those of `bella.evaluation.evaluate.collect`.

    Returns:
        ``log_prob`` of the token, whether it was the likeliest (``right``), the ``confidence`` in
        the likeliest, ``entropy`` and ``mutual_information``, each (tokens,); and how many tokens
        each example has, ``lengths``.

    Raises:
        BellaError: nothing counts, or see `collect`.
    """
    found: dict[str, list[Tensor]] = {}
    for batch in loader:
        predictive, labels = collect(posterior, [batch], **options)
        log_probs = predictive.log_probs
        values = {
            "log_prob": log_probs.gather(-1, labels[:, None]).squeeze(-1),
            "right": log_probs.argmax(-1) == labels,
            "confidence": predictive.confidence,
            "entropy": predictive.entropy,
            "mutual_information": predictive.mutual_information,
            "lengths": predictive.all_lengths(),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    if not found:
        raise BellaError("There is nothing to predict: the data are empty.")
    return {name: torch.cat(parts) for name, parts in found.items()}


def by_example(values: Tensor, lengths: Tensor) -> Tensor:
    """The mean over each example's tokens, (examples with any,)."""
    return torch.stack([part.mean() for part in values.split(lengths[lengths > 0].tolist())])


def evaluate_tokens(
    posterior: Posterior, loader: Iterable[Any], ood: Iterable[Any] | None = None, **options: Any
) -> dict[str, float]:
    """All figures of tokens.

    Returns:
        ``nll`` a token in nats and its ``perplexity``; ``nll_example``, the mean over examples of
        their own mean; ``accuracy`` of the likeliest token; mean ``entropy`` and
        ``mutual_information``, the latter also of right and wrong tokens (``mi_correct``,
        ``mi_wrong``); ``auroc_errors_entropy`` and ``auroc_errors_mi``; ``ece``. Of other data
        ``auroc_ood_entropy`` and ``auroc_ood_mi`` between the examples' means, ``entropy_ood``,
        ``mi_ood`` and ``nll_ood``. NaN where there is no such figure.

    Raises:
        BellaError: see `token_rows`.
    """
    said = token_rows(posterior, loader, **options)
    right, mi, entropy = said["right"], said["mutual_information"], said["entropy"]
    disputed = bool((mi > 0).any())
    nll = -said["log_prob"].double()
    found = {
        "nll": float(nll.mean()),
        "perplexity": float(nll.mean().exp()),
        "nll_example": float(by_example(nll, said["lengths"]).mean()),
        "accuracy": float(right.double().mean()),
        "ece": _calibration(said["confidence"], right),
        "entropy": float(entropy.mean()),
        "mutual_information": float(mi.mean()),
        "mi_correct": float(mi[right].mean()),
        "mi_wrong": float(mi[~right].mean()),
        "auroc_errors_entropy": metrics.auroc(entropy, ~right),
        "auroc_errors_mi": metrics.auroc(mi, ~right) if disputed else math.nan,
    }
    if ood is None:
        return found
    other = token_rows(posterior, ood, **options)
    means = {
        name: (by_example(said[name], said["lengths"]), by_example(other[name], other["lengths"]))
        for name in ("entropy", "mutual_information")
    }
    disputed = disputed or bool((other["mutual_information"] > 0).any())
    return found | {
        "auroc_ood_entropy": metrics.auroc_between(*means["entropy"]),
        "auroc_ood_mi": metrics.auroc_between(*means["mutual_information"])
        if disputed
        else math.nan,
        "entropy_ood": float(other["entropy"].mean()),
        "mi_ood": float(other["mutual_information"].mean()),
        "nll_ood": float(-other["log_prob"].double().mean()),
    }


def _calibration(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """ECE of the likeliest token, equal-width bins (Guo et al. 2017), as `bella.metrics.ece`."""
    edges = torch.linspace(0, 1, bins + 1)[1:-1]
    place = torch.bucketize(confidence.float(), edges, right=True)
    gap = torch.zeros(bins, dtype=torch.double)
    gap.index_add_(0, place, confidence.double() - right.double())
    return float(gap.abs().sum() / len(right))
