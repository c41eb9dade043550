"""`bella.evaluate`: every figure of a posterior on a data set, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from bella import metrics
from bella.inputs import split, to
from bella.posterior import Posterior
from bella.predictive import Average, Predictive, predict


def collect(
    posterior: Posterior,
    loader: Any,
    *,
    draws: int = 1,
    particles_per_pass: int | None = None,
    average: Average = "probs",
    progress: Progress | None = None,
) -> tuple[Predictive, Tensor]:
    """Predict a whole loader.

    Args:
        posterior: any posterior.
        loader: of (inputs, labels) or mappings with ``labels``.
        draws: see `bella.predict`.
        particles_per_pass: see `bella.predict`.
        average: see `Predictive`.
        progress: a display to show a bar in.

    Returns:
        The predictive and the labels of all examples, on the CPU.

    Raises:
        BellaError: the loader is empty.
    """
    device = next(posterior.network.parameters()).device
    task = progress.add_task("predicting", total=len(loader)) if progress else None
    parts, labels = [], []
    for batch in loader:
        args, kwargs, y = split(batch)
        inputs: Any = to(kwargs or args, device)
        predictive = predict(
            posterior, inputs, draws=draws, particles_per_pass=particles_per_pass, average=average
        )
        parts.append(Predictive(predictive.logits.cpu(), average))
        labels.append(y.cpu())
        if progress and task is not None:
            progress.advance(task)
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
        **options: of `collect`.

    Returns:
        The figures of `figures`.
    """
    named = ood if isinstance(ood, Mapping) else {} if ood is None else {"ood": ood}

    def run(data: Any) -> tuple[Predictive, Tensor]:
        predictive, labels = collect(posterior, data, progress=progress, **options)
        return (predictive.tempered(temperature) if temperature else predictive), labels

    predictive, labels = run(loader)
    return figures(predictive, labels, {name: run(data) for name, data in named.items()})


def figures(
    predictive: Predictive,
    labels: Tensor,
    ood: Mapping[str, tuple[Predictive, Tensor]] | None = None,
) -> dict[str, float]:
    """All figures of collected predictions.

    Returns:
        ``accuracy``, ``nll``, ``brier`` (0 to 2), ``ece``, ``adaptive_ece``; mean ``entropy`` and
        ``mutual_information`` (nats), the latter on right (``mi_right``) and wrong (``mi_wrong``)
        answers; ``auroc_errors_entropy`` and ``auroc_errors_mi``, how well each uncertainty tells
        errors; ``aurc``, by entropy; ``diversity`` and ``disagreement``. For each foreign set also
        ``auroc_NAME_entropy``, ``auroc_NAME_mi``, ``entropy_NAME``, ``mi_NAME`` and, where it has
        labels, ``accuracy_NAME``, ``nll_NAME``, ``ece_NAME``.
    """
    probs, mi = predictive.probs, predictive.mutual_information
    wrong = predictive.predictions != labels
    found = {
        "accuracy": metrics.accuracy(probs, labels),
        "nll": float(predictive.nll(labels)),
        "brier": metrics.brier(probs, labels),
        "ece": metrics.ece(probs, labels),
        "adaptive_ece": metrics.adaptive_ece(probs, labels),
        "entropy": float(predictive.entropy.mean()),
        "mutual_information": float(mi.mean()),
        "mi_right": _mean(mi[~wrong]),
        "mi_wrong": _mean(mi[wrong]),
        "auroc_errors_entropy": metrics.auroc(predictive.entropy, wrong),
        "auroc_errors_mi": metrics.auroc(mi, wrong),
        "aurc": metrics.aurc(probs, labels, predictive.entropy),
        "diversity": metrics.diversity(predictive.particle_probs),
        "disagreement": metrics.disagreement(predictive.particle_probs),
    }
    for name, (other, truth) in (ood or {}).items():
        found[f"auroc_{name}_entropy"] = metrics.auroc_between(predictive.entropy, other.entropy)
        found[f"auroc_{name}_mi"] = metrics.auroc_between(mi, other.mutual_information)
        found[f"entropy_{name}"] = float(other.entropy.mean())
        found[f"mi_{name}"] = float(other.mutual_information.mean())
        if bool(((truth >= 0) & (truth < other.probs.shape[1])).all()):
            found[f"accuracy_{name}"] = metrics.accuracy(other.probs, truth)
            found[f"nll_{name}"] = float(other.nll(truth))
            found[f"ece_{name}"] = metrics.ece(other.probs, truth)
    return found


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
