"""The networks that benchmarks adapt, with random images and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import transformers
from torch import Tensor, nn

import bella


class Pooled(nn.Module):
    """A transformer as a map from images to one vector each, which stands for logits here."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, side, side) to (batch, width)."""
        return self.network(pixel_values=images).pooler_output


def clip_vit_b32() -> nn.Module:
    """The image half of CLIP ViT-B/32, random weights."""
    return Pooled(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(patch_size=32)))


def vit_s32() -> nn.Module:
    """ViT-S with patches of 32 pixels, random weights."""
    config = transformers.ViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=12,
        intermediate_size=1536,
        patch_size=32,
    )
    return Pooled(transformers.ViTModel(config))


def efficientnet_lite0() -> nn.Module:
    """The demo's network, as the demo opens it."""
    return bella.models.open_network("efficientnet-lite0", 2, 160).network


@dataclass(frozen=True)
class Case:
    """A network and what of it is adapted.

    Attributes:
        title: for tables.
        make: a fresh network; a module's function, so that other processes find it.
        side: of the images, in pixels.
        classes: number of logits.
        targets: layers that get low-rank changes, of rank 4.
        heads: layers of which every member has a whole copy.
    """

    title: str
    make: Callable[[], nn.Module]
    side: int
    classes: int
    targets: tuple[str, ...]
    heads: tuple[str, ...] = ()

    def data(self, batch: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Random images and labels."""
        x = torch.randn(batch, 3, self.side, self.side, device=device)
        return x, torch.randint(self.classes, (batch,), device=device)

    def posterior(self, particles: int, device: str = "cpu") -> bella.Posterior:
        """Fresh particles on a fresh network."""
        made = bella.low_rank(
            self.make(), particles, 4, self.targets, modules_to_save=self.heads, b_std=0.01
        )
        return made.to(device)


VIT = Case("CLIP ViT-B/32", clip_vit_b32, 224, 768, ("fc1", "fc2"))
LAST_BLOCKS = replace(VIT, targets=(r".*\.(8|9|10|11)\.mlp\.fc[12]",))
SMALL_VIT = Case("ViT-S/32", vit_s32, 224, 384, ("fc1", "fc2"))
DEMO = Case(
    "EfficientNet-Lite0, 160 px",
    efficientnet_lite0,
    160,
    2,
    (r"_blocks\.15\._(expand|project)_conv", "_conv_head"),
    ("_fc",),
)
