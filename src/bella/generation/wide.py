"""The product with a vocabulary, a part of the words at a time.

A token of several particles is a product of a few rows with the network's largest matrix. On a CPU
float32 kernels arrange the whole matrix for it first, which takes longer than to read it: 5 rows of
576 with 49,152 words took two and a half times as long as one row. Parts fit into a cache.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.particles.layer import compute_dtype
from bella.particles.linearity import is_plain

PART = 2**22
"""Bytes of a part of the matrix; and a matrix below four of them is left whole."""
MOST = 16
"""Rows up to which it pays."""


class Wide(nn.Module):
    """In the place of a Linear layer with many outputs.

    Args:
        base: the layer.
    """

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """What the layer answers."""
        weight, bias = self.base.weight, self.base.bias
        few = 1 < x.numel() // x.shape[-1] <= MOST and x.device.type == "cpu"
        if not few or torch.is_grad_enabled() or weight.dtype != torch.float32:
            return self.base(x)
        if compute_dtype(x) != torch.float32:
            return self.base(x)
        words = PART // (weight.shape[1] * weight.element_size())
        parts = weight.split(words)
        biases = [None] * len(parts) if bias is None else bias.split(words)
        return torch.cat([F.linear(x, w, b) for w, b in zip(parts, biases, strict=True)], -1)


def in_parts(network: Any) -> Any:
    """A shallow copy of a network whose vocabulary is multiplied in parts; itself, where its output
    layer is no plain Linear of its own or not that large.

    The network is not touched, so other threads may run it meanwhile.
    """
    ask = getattr(network, "get_output_embeddings", None)
    try:
        layer = ask() if callable(ask) else None
    except (AttributeError, NotImplementedError):
        layer = None
    names = [name for name, module in network._modules.items() if module is layer]
    if layer is None or not names or not is_plain(layer, nn.Linear):
        return network
    if layer.weight.numel() * layer.weight.element_size() < 4 * PART:
        return network
    twin = copy.copy(network)
    vars(twin)["_modules"] = {**network._modules, **dict.fromkeys(names, Wide(layer))}
    return twin
