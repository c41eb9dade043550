"""The logits among what a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bella.errors import BellaError


def logits_of(outputs: Any) -> Tensor:
    """The logits among a network's outputs.

    Args:
        outputs: the logits, an object or mapping with ``logits``, or a tuple that begins with them
            and holds no narrower tensor of their kind: features come before logits then.

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
        like = [x for x in outputs if isinstance(x, Tensor) and _alike(x, outputs[0])]
        if any(x.shape[-1] < outputs[0].shape[-1] for x in like):
            raise BellaError(
                f"The network returned tensors of shapes "
                f"{', '.join(str(tuple(x.shape)) for x in like)}, of which the first may be "
                "features and no logits: return the logits alone, or in a mapping or object as "
                "logits."
            )
        return outputs[0]
    raise BellaError(
        f"The network returned a {type(outputs).__name__} without logits: return a tensor of "
        "logits, or an object with .logits."
    )


def _alike(x: Tensor, other: Tensor) -> bool:
    """Whether two outputs have as many axes and the same examples, and so could be each other."""
    return x.is_floating_point() and x.dim() == other.dim() and x.shape[:2] == other.shape[:2]
