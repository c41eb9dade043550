"""In which precision a step multiplies, and how fp16 losses are scaled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from bella.errors import BellaError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By name; ``no`` multiplies as the parameters are."""


class Precision:
    """Autocast, and the gradient scaler that fp16 needs.

    Args:
        name: ``no``, ``bf16`` or ``fp16``.
        device: where the posterior is.
        scaler: of a loop that scales the loss and unscales the gradients by itself.

    Attributes:
        scaler: that loop's, or torch's with fp16; else ``None``.
        unscales: whether a step unscales the gradients; not where the loop does.

    Raises:
        BellaError: an unknown name.
    """

    def __init__(
        self,
        name: str = "no",
        device: torch.device | str = "cpu",
        *,
        scaler: torch.amp.GradScaler | None = None,
    ):
        if name not in ("no", *DTYPES):
            raise BellaError(f"precision={name!r}: choose 'no', 'bf16' or 'fp16'.")
        self.name = name
        self.device_type = torch.device(device).type
        self.unscales = scaler is None
        self.scaler = scaler
        if scaler is None and name == "fp16":
            self.scaler = torch.amp.GradScaler(self.device_type)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass; with ``no`` that of the caller stays."""
        if self.name == "no":
            return nullcontext()
        return torch.autocast(self.device_type, DTYPES[self.name])

    @property
    def scale(self) -> float:
        """What losses are multiplied with before they go backward."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def backward(self, loss: Tensor) -> None:
        """Go backward from a loss, scaled."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
