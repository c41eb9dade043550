"""What an architecture of the zoo is, how its weights are drawn, and pieces of inputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple, dict[str, Any]]

VOCAB = 40
LENGTH = 6  # a multiple of the particles, and rows of three particles at a batch of two
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXT = {
    **SMALL,
    "vocab_size": VOCAB,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PATCHES = {**SMALL, "image_size": 16, "patch_size": 8}  # four patches


@dataclass(frozen=True)
class Architecture:
    """A kind of network, small, with random weights.

    Attributes:
        build: makes it, on torch's random numbers.
        inputs: (args, kwargs) for a number of examples.
        skips_layers: whether it skips layers at random in training; then a particle is right if it
            is its own network with some of its layers skipped.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    skips_layers: bool = False

    def network(self, name: str) -> nn.Module:
        """The network in evaluation mode, the same for the same name."""
        torch.manual_seed(zlib.crc32(name.encode()))
        network = self.build().requires_grad_(False)
        stir(network)
        self.settle(network)
        return network.eval()

    @torch.no_grad()
    def settle(self, network: nn.Module) -> None:
        """Give batch norm the statistics of a batch, or signals die from layer to layer."""
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms:
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = 1.0
            args, kwargs = self.inputs(8)
            network.train()(*args, **kwargs)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@torch.no_grad()
def stir(network: nn.Module) -> None:
    """Draw all weights at a size at which they count.

    What libraries start with is so small (0.02) or so special (zeros, ones, 1e-6) that attention
    is uniform and a wrong particle's weights would hardly be seen.
    """
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))


def generator(batch: int) -> torch.Generator:
    return torch.Generator().manual_seed(batch)


def pixels(batch: int, size: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=generator(batch))


def waves(batch: int, length: int = 400) -> Tensor:
    return torch.randn(batch, length, generator=generator(batch))


def series(batch: int, length: int = LENGTH, width: int = 8) -> Tensor:
    return torch.randn(batch, length, width, generator=generator(batch))


def ids(batch: int, length: int = LENGTH, first: int = 5, last: int = VOCAB - 5) -> Tensor:
    return torch.randint(first, last, (batch, length), generator=generator(batch))


def padding(batch: int, side: str, length: int = LENGTH) -> Tensor:
    """A mask (batch, length) whose first row, and every other one, lacks two tokens."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[::2, slice(0, 2) if side == "left" else slice(length - 2, length)] = 0
    return mask


# Whole inputs, by what a network takes


def image(size: int = 16, **more: Any) -> Callable[[int], Inputs]:
    return lambda batch: ((), {"pixel_values": pixels(batch, size), **more})


def positional_image(size: int = 16) -> Callable[[int], Inputs]:
    return lambda batch: ((pixels(batch, size),), {})


def text(side: str | None = "right", **more: Any) -> Callable[[int], Inputs]:
    """Token numbers, padded on one side (``None``: no mask at all)."""

    def inputs(batch: int) -> Inputs:
        kwargs = {"input_ids": ids(batch), **more}
        if side is not None:
            kwargs["attention_mask"] = padding(batch, side)
        return (), kwargs

    return inputs
