"""The logits of a network's outputs, and their negative log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bella import metrics
from bella.classes import ClassAxis
from bella.errors import BellaError


def logits_of(outputs: Any) -> Tensor:
    """The logits among a network's outputs.

    Args:
        outputs: the logits, an object or mapping with ``logits``, or a tuple that begins with them.

    Raises:
        BellaError: none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    if isinstance(getattr(outputs, "logits", None), Tensor):
        return outputs.logits
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise BellaError(
        f"The network returned a {type(outputs).__name__} without logits: return a tensor of "
        "logits, or an object with .logits."
    )


def nll(
    outputs: Any,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    class_axis: int | ClassAxis | None = None,
) -> Tensor:
    """Negative log-likelihood: MEAN over the batch, SUM over the particles.

    The sum keeps every particle's gradient its own; a mean would divide each by n.

    Args:
        outputs: a posterior's outputs; logits (particles, batch, ..., classes), or with the classes
            on another axis where the labels' shape shows which.
        labels: class numbers (batch, ...), or (particles, batch, ...) where each particle has its
            own examples.
        ignore_index: label of positions that do not count; a particle without any other has 0.
        class_axis: where the network's own outputs have their classes, if their kind and the
            labels' shape leave it open; see `bella.classes.ClassAxis`.

    Returns:
        A scalar, in nats.

    Raises:
        BellaError: labels of another shape or type, or out of range (checked on CPU tensors; on a
            GPU the check would wait for the device).
    """
    logits = ClassAxis.of(class_axis).place(logits_of(outputs), outputs, labels)
    logits = metrics.precise(logits)
    if labels.is_floating_point():
        raise BellaError(f"Labels are {labels.dtype}: give class numbers as integers.")
    labels = labels.long()
    if labels.dim() == logits.dim() - 2:
        labels = labels.expand(logits.shape[0], *labels.shape)
    if logits.dim() < 3 or labels.shape != logits.shape[:-1]:
        raise BellaError(
            f"Labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}, which must be (particles, batch, ..., classes)."
        )
    if labels.device.type == "cpu":
        metrics.check_labels(labels, logits.shape[-1], ignore_index)
    losses = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="none"
    ).view(logits.shape[0], -1)
    counts = (labels != ignore_index).flatten(1).sum(1).clamp_min(1)
    return (losses.sum(1) / counts).sum()
