"""`bella.nll`: outputs and labels into losses, weighed, one number a particle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.likelihood.base import IGNORED, Likelihood
from bella.likelihood.networks import by_name, likelihood_of_outputs
from bella.likelihood.outputs import logits_of

Mean = Literal["labels", "examples"]
"""What a mean is over: all labels that count, or the examples, each by the mean of its own."""


def targets_of(
    labels: Tensor, likelihood: str | Likelihood, *, ignore_index: int = IGNORED
) -> Tensor:
    """The labels at the positions of the scores that are scored on them.

    Args:
        labels: as the data have them.
        likelihood: a name in `bella.likelihood.LIKELIHOODS`, or one of these itself.
        ignore_index: the label of positions that do not count.

    Returns:
        Of the same shape; int64 for classes, tokens and several labels.

    Raises:
        BellaError: labels of another type.
    """
    return by_name(likelihood).targets(labels, ignore_index)


def beside(targets: Tensor, scores: Tensor, kind: Likelihood, own: bool | None = None) -> Tensor:
    """Each particle's targets, (particles, batch, ...).

    Args:
        targets: see `targets_of`.
        scores: (particles, batch, ..., s).
        kind: their likelihood.
        own: whether every particle has labels of its own; ``None`` reads it from their shape.

    Raises:
        BellaError: they do not fit.
    """
    positions = scores.shape[:-1]
    ended = not kind.of_classes and targets.shape[-1:] == (1,)
    if not own and targets.shape == positions[1:]:
        return targets.expand(positions)
    if not own and ended and targets.shape[:-1] == positions[1:]:  # (batch, 1) numbers
        return targets.squeeze(-1).expand(positions)
    if own is not False and len(positions) > 1:
        if targets.shape == positions:
            return targets
        if ended and targets.shape[:-1] == positions:
            return targets.squeeze(-1)
    raise BellaError(kind.misfit(targets, scores))


def weigh(
    targets: Tensor,
    kind: Likelihood,
    *,
    ignore_index: int = IGNORED,
    mean_over: Mean = "labels",
    class_weights: Sequence[float] | Tensor | None = None,
    weights: Tensor | None = None,
    batch_axis: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """What each label weighs in a mean, 0 where it does not count.

    Args:
        targets: see `targets_of`, with or without a particle axis.
        kind: their likelihood.
        ignore_index: see `nll`.
        mean_over: see `nll`.
        class_weights: see `nll`.
        weights: see `nll`; (batch,), or (particles, batch).
        batch_axis: of the targets: 1 where each particle has its own.
        dtype: of what is returned.

    Returns:
        Of the targets' shape; ``None`` where all that count weigh the same.

    Raises:
        BellaError: weights of another shape, negative ones or such as are not finite.
    """
    if mean_over not in ("labels", "examples"):
        raise BellaError(f"mean_over={mean_over!r}: choose 'labels' or 'examples'.")
    # An example of one label is its label.
    by_example = mean_over == "examples" and targets.dim() > batch_axis + 1
    if not by_example and class_weights is None and weights is None:
        return None
    found = kind.counted(targets, ignore_index).to(dtype)
    if class_weights is not None:
        each = torch.as_tensor(class_weights, dtype=dtype, device=targets.device)
        _check_weights(each, "class_weights")
        found = found * kind.class_weights(targets, each)
    if by_example:
        flat = found.flatten(batch_axis + 1)
        whole = flat.sum(-1, keepdim=True)
        found = (flat / torch.where(whole > 0, whole, 1.0)).view(targets.shape)
    if weights is not None:
        _check_weights(weights, "weights")
        lead = tuple(targets.shape[: batch_axis + 1])
        if tuple(weights.shape) != lead:
            raise BellaError(
                f"weights of shape {tuple(weights.shape)} are not one number an example, {lead}."
            )
        tail = [1] * (targets.dim() - weights.dim())
        found = found * weights.to(found).view(*weights.shape, *tail)
    return found


def _check_weights(values: Tensor, name: str) -> None:
    if values.device.type == "cpu" and not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise BellaError(f"{name} hold a number that is negative or not finite: give weights >= 0.")


def losses(
    outputs: Any,
    labels: Tensor,
    *,
    likelihood: str | Likelihood | None = None,
    own: bool | None = None,
    ignore_index: int = IGNORED,
    class_axis: int | ClassAxis | None = None,
    mean_over: Mean = "labels",
    class_weights: Sequence[float] | Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each particle's negative log-likelihood, summed, and what was summed over.

    Args:
        outputs: see `nll`.
        labels: see `nll`.
        likelihood: see `nll`.
        own: whether every particle has labels of its own; ``None`` reads it from their shape.
        ignore_index: see `nll`.
        class_axis: see `nll`.
        mean_over: see `nll`.
        class_weights: see `nll`.
        weights: see `nll`.

    Returns:
        Sums in nats, and the number of labels that count or the sum of their weights, both
        (particles,).

    Raises:
        BellaError: see `nll`.
    """
    kind = by_name(likelihood or likelihood_of_outputs(outputs))
    targets = kind.targets(labels, ignore_index)
    scores = kind.scores(logits_of(outputs), outputs, labels, ClassAxis.of(class_axis))
    targets = beside(targets, scores, kind, own)
    each = kind.losses(scores, targets, ignore_index)
    if weights is not None:
        weights = weights.to(targets.device)
        if weights.dim() == 1:
            weights = weights.expand(len(targets), -1)
    weighed = weigh(
        targets,
        kind,
        ignore_index=ignore_index,
        mean_over=mean_over,
        class_weights=class_weights,
        weights=weights,
        batch_axis=1,
        dtype=each.dtype,
    )
    if weighed is None:
        counted = kind.counted(targets, ignore_index)
        return each.flatten(1).sum(1), counted.flatten(1).sum(1)
    return (each * weighed).flatten(1).sum(1), weighed.flatten(1).sum(1)


def nll(
    outputs: Any,
    labels: Tensor,
    *,
    likelihood: str | Likelihood | None = None,
    ignore_index: int = IGNORED,
    class_axis: int | ClassAxis | None = None,
    mean_over: Mean = "labels",
    class_weights: Sequence[float] | Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood: MEAN over the labels that count, SUM over the particles.

    The sum keeps every particle's gradient its own; a mean would divide each by n. It is n times
    the mean of the losses that the n networks would compute themselves from these labels.

    Args:
        outputs: a posterior's outputs; logits (particles, batch, ..., classes), or with the classes
            on another axis where the labels' shape shows which; of several labels at once
            (particles, batch, ..., labels); of k numbers (particles, batch, ..., 2 k), means first
            and then log variances.
        labels: as the data have them, (batch, ...), or (particles, batch, ...) where each particle
            has its own examples: class or token numbers; zeros and ones (batch, labels); numbers
            (batch,) or (batch, k).
        likelihood: ``classes``: every position has its label; ``tokens``: position t is scored on
            label t + 1, as transformers does inside its causal models; ``bernoulli``: several
            labels at once; ``gaussian``: numbers. Or one of these as an object, such as
            ``bella.likelihood.Gaussian(variance=0.1)`` for outputs that are means alone. ``None``
            goes by the outputs: ``tokens`` for the outputs of a causal language model of
            transformers, else ``classes``. A bare tensor of logits does not say where it comes
            from, and the decoders of encoder-decoder networks alone (``BartForCausalLM``) do not
            shift: name it there.
        ignore_index: label of positions that do not count; a particle without any other has 0.
            Numbers that are NaN do not count.
        class_axis: where the network's own outputs have their classes, if their kind and the
            labels' shape leave it open; see `bella.classes.ClassAxis`.
        mean_over: ``labels``: the mean is over all labels of the BATCH that count, as transformers
            has it: a long text weighs more than a short one. ``examples``: over the examples, each
            by the mean over its OWN labels that count: a text is one datum, however long. The same
            where an example has one label.
        class_weights: what labels of each class weigh, (classes,): the mean is
            Σ w ℓ / Σ w, as in torch's ``cross_entropy``. Of several labels one weight a label.
        weights: what each example weighs, (batch,), in the same mean.

    Returns:
        A scalar, in nats.

    Raises:
        BellaError: labels of another shape or type, one logit, or labels out of range (checked on
            CPU tensors; on a GPU the check would wait for the device); weights that are negative
            or of another shape.
    """
    sums, counts = losses(
        outputs,
        labels,
        likelihood=likelihood,
        ignore_index=ignore_index,
        class_axis=class_axis,
        mean_over=mean_over,
        class_weights=class_weights,
        weights=weights,
    )
    return (sums / torch.where(counts > 0, counts, 1)).sum()
