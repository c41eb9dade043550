"""`bella.evaluate`: every figure of a posterior on a data set, by name."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from bella import metrics
from bella.classes import ClassAxis
from bella.data.loaders import check_collate, opened
from bella.errors import BellaError
from bella.evaluation.several import label_figures, number_figures, shifted_number_figures
from bella.inputs import check_names, split, to
from bella.likelihood import Likelihood, by_name, likelihood_of_outputs, of_posterior
from bella.likelihood.scoring import beside
from bella.posterior import Posterior
from bella.prediction.labels import MultiLabelPredictive
from bella.prediction.numbers import GaussianPredictive
from bella.prediction.predict import (
    Combined,
    NotFiniteError,
    in_precision,
    particles_at_once,
    particles_of,
    predict,
)
from bella.prediction.predictive import IGNORED, Predictive
from bella.prediction.said import Said

PATIENCE = 2.0
"""Seconds after which a bar is worth showing."""


def collect(
    posterior: Posterior | Combined,
    data: Any,
    *,
    batch_size: int = 32,
    collate_fn: Callable[[list], Any] | None = None,
    likelihood: str | Likelihood = "auto",
    progress: Progress | None = None,
    class_axis: int | ClassAxis | None = None,
    ignore_index: int = IGNORED,
    **options: Any,
) -> tuple[Any, Tensor]:
    """Predict all data.

    Args:
        posterior: any posterior or mixture.
        data: what `bella.fit` takes: a data set of (inputs, label) or of mappings with ``labels``,
            a list of such, a pair of tensors, a stream, a loader; or any iterable of batches, used
            as it is. Batches of no example are passed over.
        batch_size: examples a batch, where no loader was given.
        collate_fn: puts examples into a batch, where no loader was given.
        likelihood: what the labels are, see `bella.nll`; ``auto``: as the network's own loss
            takes them.
        progress: a display to show a bar in, from the second second on.
        class_axis: see `bella.predict`; found on the first batch and kept.
        ignore_index: label of examples, tokens or pixels that do not count.
        **options: those of `bella.predict`: ``draws``, ``average``, ``particles_per_pass``
            (``auto`` is decided on the first batch), ``stop``, ``precision``, ...

    Returns:
        The predictive and the labels of all that counts, on the CPU: of examples, or of their
        tokens or pixels one after another (`Predictive.lengths` says how many each example has);
        labels stand at the positions that are scored on them. Several labels or numbers an example
        stay side by side, (examples, labels), and so do those that do not count.

    Raises:
        BellaError: there are no data or data of another form, or nothing in them counts; labels
            that do not fit; inputs or logits that are not finite, named by batch and row.
    """
    loader = opened(data, batch_size, shuffle=False, collate_fn=collate_fn)
    device = next(posterior.parameters()).device
    total = operator.length_hint(loader) or None
    task = progress.add_task("predicting", total=total, visible=False) if progress else None
    start = time.monotonic()
    parts: list[Any] = []
    labels: list[Tensor] = []
    axis = ClassAxis.of(class_axis)
    network = getattr(posterior, "network", posterior)
    kind = of_posterior(posterior, likelihood)
    asked = {name: options[name] for name in ("precision", "base_dtype") if name in options}
    with ExitStack() as stack:
        for number, batch in enumerate(loader):
            args, kwargs, y = split(batch, network)
            if y.shape[:1] == (0,):
                continue
            check_names(network, kwargs)
            inputs: Any = to(kwargs or args, device)
            if options.get("particles_per_pass") == "auto":
                size = particles_at_once(posterior, inputs, options.pop("memory", None))
                options["particles_per_pass"] = size
            y = y if kind is None else kind.targets(y, ignore_index)
            try:
                with outputs_of(particles_of(posterior)) as heard:
                    predictive = predict(
                        posterior,
                        inputs,
                        likelihood=likelihood if kind is None else kind,
                        class_axis=axis,
                        labels=y,
                        ignore_index=ignore_index,
                        **options,
                    )
            except NotFiniteError as error:
                raise NotFiniteError(f"Batch {number}: {error}") from None
            if asked and not parts:  # the first batch has decided: cast the base once for all
                stack.enter_context(in_precision(posterior, **asked))
            if kind is None:  # only the outputs tell
                kind = by_name(likelihood_of_outputs(heard[0]))
                y = kind.targets(y, ignore_index)
            predictive, y = predictive.cpu(), y.cpu()
            if kind.several:
                y = beside(y, predictive.logits, kind, own=False)[0]
            else:
                predictive, y = predictive.counted(y, ignore_index)
            parts.append(predictive)
            labels.append(y)
            if progress and task is not None:
                progress.update(task, advance=1, visible=time.monotonic() - start > PATIENCE)
    if progress and task is not None:
        progress.remove_task(task)
    if parts and kind is not None and not any(kind.counted(y, ignore_index).any() for y in labels):
        none, foreign = (ignore_index, "-1") if kind.of_classes else ("NaN", "infinity")
        raise BellaError(
            f"Nothing in the data counts: all labels are {none}. Label examples that have none "
            f"with {foreign}, which foreign data may."
        )
    return (type(parts[0]) if parts else Predictive).cat(parts), torch.cat(labels)


@contextmanager
def outputs_of(posterior: nn.Module) -> Iterator[list[Any]]:
    """What its first pass inside the block returns, in a list."""
    heard: list[Any] = []
    handle = posterior.register_forward_hook(
        lambda _, __, outputs: None if heard else heard.append(outputs)
    )
    try:
        yield heard
    finally:
        handle.remove()


def evaluate(
    posterior: Posterior | Combined,
    loader: Any,
    *,
    ood: Any = None,
    temperature: float | None = None,
    batch_size: int = 32,
    collate_fn: Callable[[list], Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, float]:
    """All figures of a posterior.

    Args:
        posterior: any posterior or mixture.
        loader: in-distribution data, in any form that `bella.fit` takes.
        ood: shifted or foreign data, or a mapping of names to such. Their labels may be out of
            range (-1) where there are none.
        temperature: of each particle's predictive, see `fit_temperature`: divide all logits by
            it; multiply the variances of numbers by it.
        batch_size: examples a batch, of data without a loader.
        collate_fn: puts examples into a batch, of data without a loader.
        progress: a display to show bars in.
        **options: ``likelihood``, see `collect`, and those of `bella.predict`: ``draws``,
            ``average``, ``particles_per_pass``, ``class_axis``, ``ignore_index`` (-100), ...

    Returns:
        The figures of `evaluate_predictive`, over all examples; where each has several answers,
        over all tokens, pixels, labels or numbers whose label counts.

    Raises:
        BellaError: no data, or labels that do not fit the classes.
    """
    check_collate(collate_fn, loader, *(ood.values() if isinstance(ood, Mapping) else (ood,)))
    named = ood if isinstance(ood, Mapping) else {} if ood is None else {"ood": ood}

    def run(data: Any) -> tuple[Any, Tensor]:
        predictive, labels = collect(
            posterior,
            data,
            batch_size=batch_size,
            collate_fn=collate_fn,
            progress=progress,
            **options,
        )
        return predictive if temperature is None else predictive.tempered(temperature), labels

    predictive, labels = run(loader)
    return evaluate_predictive(
        predictive, labels, ood={name: run(data) for name, data in named.items()}
    )


def evaluate_predictive(
    predictive: Said,
    labels: Tensor,
    *,
    ood: Mapping[str, tuple[Said, Tensor]] | None = None,
) -> dict[str, float]:
    """All figures of what `collect` returned, so that nothing is run twice.

    Args:
        predictive: predictions on in-distribution data.
        labels: their class numbers; what has the label -100 is left out.
        ood: by name, the predictions on other data and their labels.

    Returns:
        ``accuracy``, ``nll``, ``brier`` (0 to 2), ``ece``, ``adaptive_ece``; mean ``entropy`` and
        ``mutual_information`` (nats), the latter also of correct answers (``mi_correct``) and of
        wrong ones (``mi_wrong``); ``auroc_errors_entropy`` and ``auroc_errors_mi``, how well each
        uncertainty tells errors, and ``fpr95_errors_entropy`` and ``fpr95_errors_mi``, the false
        alarms where 95% of the errors are noticed; ``auroc_errors_confidence``, how well 1 - max p
        tells errors; ``aurc``, by entropy; ``diversity`` and ``disagreement``. For each other set
        also ``auroc_NAME_entropy``, ``auroc_NAME_mi``, ``fpr95_NAME_entropy``, ``fpr95_NAME_mi``,
        ``auroc_NAME_novelty``, by the score that a mixture with a distance has for it, else by
        entropy, and of such a mixture ``auroc_NAME_distance``; ``entropy_NAME``, ``mi_NAME`` and,
        where all its labels are valid, ``accuracy_NAME``, ``nll_NAME`` and ``ece_NAME``. A figure
        of what does not occur (``mi_wrong`` without errors) is NaN, and so are the figures of
        mutual information as a score where no particle disputes anything: one network has no such
        score, and .5 would look like a measurement.

        Of several labels at once all these are of single labels; beside them `label_figures`. Of
        numbers: `number_figures` and `shifted_number_figures`, by the same rule of names.

    Raises:
        BellaError: no data, or labels that do not fit the classes.
    """
    found = known_figures(predictive, labels)
    for part, (other, truth) in (ood or {}).items():
        for name, value in shifted_figures(predictive, labels, other, truth).items():
            found[flat_name(part, name)] = value
    return found


def headline(predictive: Said, labels: Tensor) -> dict[str, float]:
    """What a training is watched by, as means over labels: ``nll``, and ``accuracy`` or, of
    numbers, ``mse``.

    Raises:
        BellaError: no data, or labels that do not fit.
    """
    counted, labels = predictive.counted(labels)
    found = {"nll": float(counted.nll(labels))}
    if isinstance(counted, GaussianPredictive):
        return found | {"mse": metrics.regression.rmse(counted.mean, labels) ** 2}
    assert isinstance(counted, Predictive)
    return found | {"accuracy": float(metrics.accuracy(counted.probs, labels))}


def known_figures(predictive: Said, labels: Tensor) -> dict[str, float]:
    """The figures of `evaluate_predictive` on in-distribution data.

    Raises:
        BellaError: no data, or labels that do not fit the classes.
    """
    if isinstance(predictive, GaussianPredictive):
        return number_figures(predictive, labels)
    if isinstance(predictive, MultiLabelPredictive):
        return class_figures(predictive, labels) | label_figures(predictive, labels)
    assert isinstance(predictive, Predictive)
    return class_figures(predictive, labels)


def class_figures(predictive: Predictive, labels: Tensor) -> dict[str, float]:
    """The figures of `evaluate_predictive` of what is told by classes."""
    predictive, labels = predictive.counted(labels)
    probs, mi = predictive.probs, predictive.mutual_information
    metrics.check(probs, labels)
    disputed = bool((mi > 0).any())
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
        "auroc_errors_mi": metrics.auroc_errors(probs, labels, mi) if disputed else math.nan,
        "fpr95_errors_entropy": metrics.fpr_at_tpr(predictive.entropy, wrong),
        "fpr95_errors_mi": metrics.fpr_at_tpr(mi, wrong) if disputed else math.nan,
        "auroc_errors_confidence": metrics.auroc_errors(probs, labels, 1 - predictive.confidence),
        "aurc": metrics.aurc(probs, labels, predictive.entropy),
        "diversity": metrics.diversity(predictive.particle_probs, predictive.weights),
        "disagreement": metrics.disagreement(predictive.particle_probs, predictive.weights),
    }


def shifted_figures(
    predictive: Said, labels: Tensor, other: Said, truth: Tensor
) -> dict[str, float]:
    """The figures of one other set of data.

    Args:
        predictive: on in-distribution data.
        labels: of the in-distribution data: which of their positions count.
        other: on the other data.
        truth: their labels; out of range where there are none.

    Returns:
        ``auroc_entropy`` and ``auroc_mi``, how well each uncertainty tells the two sets apart;
        ``fpr95_entropy`` and ``fpr95_mi``, the false alarms where 95% of the other data are
        noticed; the means ``entropy`` and ``mutual_information``; with labels also ``accuracy``,
        ``nll`` and ``ece``. The scores of mutual information are NaN where nobody disputes
        anything. Also ``auroc_novelty`` (see `novelty_of`) and, of a mixture with a distance,
        ``auroc_distance``.
    """
    if isinstance(predictive, GaussianPredictive) and isinstance(other, GaussianPredictive):
        return shifted_number_figures(predictive, labels, other, truth)
    assert isinstance(predictive, Predictive)
    assert isinstance(other, Predictive)
    predictive, labels = predictive.counted(labels)
    other, truth = other.counted(truth)
    mi, other_mi = predictive.mutual_information, other.mutual_information
    disputed = bool((mi > 0).any()) or bool((other_mi > 0).any())
    outside = torch.arange(len(mi) + len(other_mi)) >= len(mi)
    entropies = torch.cat([predictive.entropy.cpu(), other.entropy.cpu()])
    mis = torch.cat([mi.cpu(), other_mi.cpu()])
    found = {
        "auroc_entropy": metrics.auroc_between(predictive.entropy, other.entropy),
        "auroc_mi": metrics.auroc_between(mi, other_mi) if disputed else math.nan,
        "fpr95_entropy": metrics.fpr_at_tpr(entropies, outside),
        "fpr95_mi": metrics.fpr_at_tpr(mis, outside) if disputed else math.nan,
        "entropy": float(other.entropy.mean()),
        "mutual_information": float(other_mi.mean()),
    }
    if predictive.distance is not None and other.distance is not None:
        found["auroc_distance"] = metrics.auroc_between(predictive.distance, other.distance)
    found["auroc_novelty"] = metrics.auroc_between(novelty_of(predictive), novelty_of(other))
    if bool(((truth >= 0) & (truth < other.probs.shape[-1])).all()):
        found["accuracy"] = metrics.accuracy(other.probs, truth)
        found["nll"] = other.nll(truth)
        found["ece"] = metrics.ece(other.probs, truth)
    return found


def novelty_of(predictive: Predictive) -> Tensor:
    """The score by which a predictive tells what is new to it: its own, or the entropy."""
    return predictive.entropy if predictive.novelty is None else predictive.novelty


def flat_name(part: str, figure: str) -> str:
    """The name that `evaluate` gives a figure of `shifted_figures`."""
    special = {
        "auroc_entropy": f"auroc_{part}_entropy",
        "auroc_mi": f"auroc_{part}_mi",
        "fpr95_entropy": f"fpr95_{part}_entropy",
        "fpr95_mi": f"fpr95_{part}_mi",
        "auroc_distance": f"auroc_{part}_distance",
        "auroc_novelty": f"auroc_{part}_novelty",
        "mutual_information": f"mi_{part}",
    }
    return special.get(figure, f"{figure}_{part}")


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
