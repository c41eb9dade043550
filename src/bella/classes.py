"""Where a network's outputs have their classes.

A classifier's logits are (batch, classes), a token classifier's (batch, length, classes), and those
of a network that labels pixels mostly (batch, classes, height, width). Nothing is guessed: the axis
is what the caller says, what the kind of output says, or the only one that the labels' shape
leaves.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bella.errors import BellaError

PIXELS = "SemanticSegmenterOutput"
"""transformers' output of networks that label pixels: (batch, classes, height, width), of a smaller
picture than the labels'; its networks enlarge the logits bilinearly before their loss."""


class ClassAxis:
    """The class axis of one network's outputs: found once, asked for ever after.

    A later batch whose shape alone would leave two axes (as many tokens as classes) then has the
    axis of the batches before it.

    Args:
        given: the axis in the network's own outputs, whose axis 0 is the batch: 1 as in
            ``torch.nn.functional.cross_entropy``, -1 for the last. ``None`` to find it.

    Attributes:
        axis: as given or found, counted in the network's own outputs; ``None`` until then, and for
            outputs (batch, classes), which have no other.
    """

    def __init__(self, given: int | None = None):
        self.axis = given

    @staticmethod
    def of(given: int | ClassAxis | None) -> ClassAxis:
        """One that may have been made already, by a caller with several batches."""
        return given if isinstance(given, ClassAxis) else ClassAxis(given)

    def place(self, logits: Tensor, outputs: Any, labels: Tensor | None = None) -> Tensor:
        """A posterior's logits with the classes last: (particles, batch, ..., classes).

        Args:
            logits: (particles, batch, ...), with the classes wherever the network has them.
            outputs: what the posterior returned and they are part of; transformers' kinds of
                outputs say where the classes are.
            labels: (batch, ...) or (particles, batch, ...). With transformers' networks that label
                pixels, logits are enlarged to the labels' pixels as those networks' loss does.

        Raises:
            BellaError: labels of another shape, or an axis that nothing decides.
        """
        axis = self.find(logits, outputs, labels)
        if type(outputs).__name__ == PIXELS and labels is not None and axis == 2:
            logits = enlarge(logits, labels)
        return logits.movedim(axis, -1)

    def find(self, logits: Tensor, outputs: Any, labels: Tensor | None = None) -> int:
        """The classes' axis in the posterior's logits, whose axis 0 are the particles; see
        `place`."""
        own = logits.dim() - 1
        if own < 2:
            raise BellaError(
                f"Logits of shape {tuple(logits.shape)} must be (particles, batch, ..., classes)."
            )
        if self.axis is None and own > 2:
            self.axis = known_axis(outputs)
            if self.axis is None:
                self.axis = axis_by_labels(logits, labels)
        axis = -1 if self.axis is None else self.axis
        if not (-own < axis < own) or axis == 0:
            raise BellaError(
                f"class_axis={axis}: the network's outputs have {own} axes and the first is the "
                f"batch, so give one from 1 to {own - 1}, or -1 for the last."
            )
        return axis + 1 if axis > 0 else axis


def known_axis(outputs: Any) -> int | None:
    """The class axis that the kind of transformers' output says; ``None`` for other outputs."""
    name = type(outputs).__name__
    if name == PIXELS:
        return 1
    return -1 if name == "TokenClassifierOutput" or "LMOutput" in name else None


def axis_by_labels(logits: Tensor, labels: Tensor | None) -> int:
    """The only axis of (particles, batch, ...) logits without which they have the labels' shape.

    Raises:
        BellaError: no labels, none such, or several.
    """
    shape = tuple(logits.shape[1:])
    if labels is None:
        raise BellaError(
            f"The network's outputs of shape {shape} (batch first) do not say which axis holds the "
            "classes: give class_axis=1 as in torch's cross_entropy, class_axis=-1 for the last, "
            "or labels."
        )
    of_particles = int(labels.dim() == logits.dim() - 1)  # labels of each particle's own batch
    wanted = tuple(labels.shape[of_particles:])
    found = [a for a in range(1, len(shape)) if shape[:a] + shape[a + 1 :] == wanted]
    if not found:
        raise BellaError(
            f"Labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}, which must be (particles, batch, ..., classes) or have "
            "their classes on another axis than the labels' positions."
        )
    if len(found) > 1:
        raise BellaError(
            f"Labels of shape {tuple(labels.shape)} fit logits of shape {tuple(logits.shape)} with "
            f"the classes on axis {' or '.join(map(str, found))} of the network's outputs: give "
            "class_axis=1 as in torch's cross_entropy, or class_axis=-1 for the last."
        )
    return found[0] if found[0] < len(shape) - 1 else -1


def enlarge(logits: Tensor, labels: Tensor) -> Tensor:
    """Bilinear logits (particles, batch, classes, height, width) at the labels' pixels.

    Source:
        The loss of transformers' ``...ForSemanticSegmentation`` networks.
    """
    if logits.shape[-2:] == labels.shape[-2:]:
        return logits
    larger = F.interpolate(
        logits.flatten(0, 1), size=labels.shape[-2:], mode="bilinear", align_corners=False
    )
    return larger.unflatten(0, logits.shape[:2])
