"""`bella.evaluate`: every figure of a posterior on a data set, by name."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from bella import metrics
from bella.inputs import split, to
from bella.posterior import Posterior
from bella.prediction.predict import particles_at_once, predict
from bella.prediction.predictive import Predictive

PATIENCE = 2.0
"""Seconds after which a bar is worth showing."""


def collect(
    posterior: Posterior,
    loader: Any,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Predictive, Tensor]:
    """Predict a whole loader.

    Args:
        posterior: any posterior.
        loader: of (inputs, labels) or mappings with ``labels``.
        progress: a display to show a bar in, from the second second on.
        **options: those of `bella.predict`: ``draws``, ``average``, ``particles_per_pass``
            (``auto`` is decided on the first batch), ``stop``, ...

    Returns:
        The predictive and the labels of all examples, on the CPU.

    Raises:
        BellaError: the loader is empty.
    """
    device = next(posterior.parameters()).device
    total = operator.length_hint(loader) or None
    task = progress.add_task("predicting", total=total, visible=False) if progress else None
    start = time.monotonic()
    parts, labels = [], []
    for batch in loader:
        args, kwargs, y = split(batch)
        inputs: Any = to(kwargs or args, device)
        if options.get("particles_per_pass") == "auto":
            size = particles_at_once(posterior, inputs, options.pop("memory", None))
            options["particles_per_pass"] = size
        parts.append(predict(posterior, inputs, **options).cpu())
        labels.append(y.cpu())
        if progress and task is not None:
            progress.update(task, advance=1, visible=time.monotonic() - start > PATIENCE)
    if progress and task is not None:
        progress.remove_task(task)
    return Predictive.cat(parts), torch.cat(labels)


def evaluate(
    posterior: Posterior,
    loader: Any,
    *,
    ood: Any = None,
    temperature: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, float]:
    """All figures of a posterior.

    Args:
        posterior: any posterior.
        loader: in-distribution data.
        ood: a loader of shifted or foreign data, or a mapping of names to loaders. Their labels
            may be out of range (-1) where there are none.
        temperature: divide all logits by it.
        progress: a display to show bars in.
        **options: those of `bella.predict`: ``draws``, ``average``, ``particles_per_pass``, ...

    Returns:
        The figures of `evaluate_predictive`.

    Raises:
        BellaError: no data, or labels that do not fit the classes.
    """
    named = ood if isinstance(ood, Mapping) else {} if ood is None else {"ood": ood}

    def run(data: Any) -> tuple[Predictive, Tensor]:
        predictive, labels = collect(posterior, data, progress=progress, **options)
        return predictive if temperature is None else predictive.tempered(temperature), labels

    predictive, labels = run(loader)
    return evaluate_predictive(
        predictive, labels, ood={name: run(data) for name, data in named.items()}
    )


def evaluate_predictive(
    predictive: Predictive,
    labels: Tensor,
    *,
    ood: Mapping[str, tuple[Predictive, Tensor]] | None = None,
) -> dict[str, float]:
    """All figures of what `collect` returned, so that nothing is run twice.

    Args:
        predictive: predictions on in-distribution data.
        labels: their class numbers.
        ood: by name, the predictions on other data and their labels.

    Returns:
        ``accuracy``, ``nll``, ``brier`` (0 to 2), ``ece``, ``adaptive_ece``; mean ``entropy`` and
        ``mutual_information`` (nats), the latter also of correct answers (``mi_correct``) and of
        wrong ones (``mi_wrong``); ``auroc_errors_entropy`` and ``auroc_errors_mi``, how well each
        uncertainty tells errors; ``aurc``, by entropy; ``diversity`` and ``disagreement``.
        For each other set also ``auroc_NAME_entropy``, ``auroc_NAME_mi``, ``entropy_NAME``,
        ``mi_NAME`` and, where all its labels are valid, ``accuracy_NAME``, ``nll_NAME`` and
        ``ece_NAME``. A figure of what does not occur (``mi_wrong`` without errors) is NaN.

    Raises:
        BellaError: no data, or labels that do not fit the classes.
    """
    found = known_figures(predictive, labels)
    for part, (other, truth) in (ood or {}).items():
        for name, value in shifted_figures(predictive, other, truth).items():
            found[flat_name(part, name)] = value
    return found


def known_figures(predictive: Predictive, labels: Tensor) -> dict[str, float]:
    """The figures of `evaluate_predictive` on in-distribution data.

    Raises:
        BellaError: no data, or labels that do not fit the classes.
    """
    probs, mi = predictive.probs, predictive.mutual_information
    metrics.check(probs, labels)
    wrong = predictive.predictions != labels
    return {
        "accuracy": metrics.accuracy(probs, labels),
        "nll": predictive.nll(labels),
        "brier": metrics.brier(probs, labels),
        "ece": metrics.ece(probs, labels),
        "adaptive_ece": metrics.adaptive_ece(probs, labels),
        "entropy": float(predictive.entropy.mean()),
        "mutual_information": float(mi.mean()),
        "mi_correct": _mean(mi[~wrong]),
        "mi_wrong": _mean(mi[wrong]),
        "auroc_errors_entropy": metrics.auroc_errors(probs, labels, predictive.entropy),
        "auroc_errors_mi": metrics.auroc_errors(probs, labels, mi),
        "aurc": metrics.aurc(probs, labels, predictive.entropy),
        "diversity": metrics.diversity(predictive.particle_probs, predictive.weights),
        "disagreement": metrics.disagreement(predictive.particle_probs, predictive.weights),
    }


def shifted_figures(predictive: Predictive, other: Predictive, truth: Tensor) -> dict[str, float]:
    """The figures of one other set of data.

    Args:
        predictive: on in-distribution data.
        other: on the other data.
        truth: their labels; out of range where there are none.

    Returns:
        ``auroc_entropy`` and ``auroc_mi``, how well each uncertainty tells the two sets apart; the
        means ``entropy`` and ``mutual_information``; with labels also ``accuracy``, ``nll`` and
        ``ece``.
    """
    found = {
        "auroc_entropy": metrics.auroc_between(predictive.entropy, other.entropy),
        "auroc_mi": metrics.auroc_between(predictive.mutual_information, other.mutual_information),
        "entropy": float(other.entropy.mean()),
        "mutual_information": float(other.mutual_information.mean()),
    }
    if bool(((truth >= 0) & (truth < other.probs.shape[1])).all()):
        found["accuracy"] = metrics.accuracy(other.probs, truth)
        found["nll"] = other.nll(truth)
        found["ece"] = metrics.ece(other.probs, truth)
    return found


def flat_name(part: str, figure: str) -> str:
    """The name that `evaluate` gives a figure of `shifted_figures`."""
    special = {
        "auroc_entropy": f"auroc_{part}_entropy",
        "auroc_mi": f"auroc_{part}_mi",
        "mutual_information": f"mi_{part}",
    }
    return special.get(figure, f"{figure}_{part}")


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
