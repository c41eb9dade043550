"""Networks that were trained on images with their texts (CLIP, SigLIP), as image classifiers.

The image tower's features, of length 1, go into one Linear. Its rows may start as the texts of the
classes: the mean embedding of a class's prompts, scaled as in training, so that its logits are
those of the pair (zero-shot).

Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision,
section 3.1.4 (ensembles of prompts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import BellaError
from bella.files import shortened

TEMPLATES = ("a photo of a {}.",)
"""Prompts for the name of a class, where nobody gives others."""


@dataclass(frozen=True)
class Texts:
    """The text tower of a pair.

    Attributes:
        encode: prompts to their embeddings (prompts, width).
        scale: what similarities are multiplied by.
        bias: what is added to them; 0 of CLIP.
    """

    encode: Callable[[list[str]], Tensor]
    scale: float
    bias: float = 0.0


class Tower(nn.Module):
    """An image tower with a Linear on its features of length 1.

    Args:
        visual: images to features (batch, width).
        width: of the features.
        classes: size of the head.
        texts: the other tower; it is no part of the network.
    """

    def __init__(self, visual: nn.Module, width: int, classes: int, texts: Texts | None = None):
        super().__init__()
        self.visual = visual
        self.head = nn.Linear(width, classes)
        self._texts = [texts]  # in a list, so that it is no part of the module tree

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images to logits (batch, classes)."""
        return self.head(F.normalize(self.visual(pixel_values), dim=-1))

    @torch.no_grad()
    def start_zero_shot(self, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> None:
        """Start the head as the texts of the classes; the text tower is let go.

        Args:
            classes: their names, in the order of the head; ``_`` is read as a space.
            templates: prompts with ``{}`` for the name; a row is their mean direction.

        Raises:
            BellaError: no text tower, another number of classes, or a template without ``{}``.
        """
        texts = self._texts[0]
        if texts is None:
            raise BellaError("This network has no text encoder (any more): open it anew.")
        if len(classes) != self.head.out_features:
            raise BellaError(
                f"{len(classes)} names of classes, and the head has {self.head.out_features}."
            )
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise BellaError(
                f"templates={list(templates)!r}: write prompts with one {{}} for the class, such "
                f"as {TEMPLATES[0]!r}."
            )
        for row, name in enumerate(classes):
            prompts = [template.replace("{}", name.replace("_", " ")) for template in templates]
            try:
                embeddings = F.normalize(texts.encode(prompts).float(), dim=-1)
            except (RuntimeError, ValueError, IndexError) as error:
                raise BellaError(f"{prompts[0]!r} cannot be read ({shortened(error)}).") from error
            direction = F.normalize(embeddings.mean(0), dim=-1)
            self.head.weight[row] = texts.scale * direction.to(self.head.weight)
        for row, other in torch.combinations(torch.arange(len(classes))).tolist():
            if torch.equal(self.head.weight[row], self.head.weight[other]):
                raise BellaError(
                    f"The classes {classes[row]!r} and {classes[other]!r} are the same text to "
                    "this network: give its folder its own tokenizer, or the classes other names."
                )
        self.head.bias.fill_(texts.bias)
        self._texts = [None]


# ---------------------------------------------------------------- transformers


class Seen(nn.Module):
    """The image half of a pair of transformers, down to the shared space."""

    def __init__(self, pair: Any):
        super().__init__()
        self.vision_model = pair.vision_model
        self.projection = getattr(pair, "visual_projection", nn.Identity())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images to features (batch, width)."""
        return self.projection(self.vision_model(pixel_values=pixel_values).pooler_output)


def tower_of(pair: Any, tokenizer: Any, classes: int) -> Tower:
    """The image half of a CLIP or SigLIP of transformers, with its text half for a start.

    Args:
        pair: the network of both.
        tokenizer: its own; ``None`` if it is missing.
        classes: size of the head.
    """
    bias = getattr(pair, "logit_bias", None)

    def encode(prompts: list[str]) -> Tensor:
        if tokenizer is None:
            raise BellaError("This network's folder has no tokenizer, which zero-shot heads need.")
        # SigLIP knows texts of one length alone, and counts their padding in.
        padding = True if bias is None else "max_length"
        read = tokenizer(prompts, padding=padding, truncation=True, return_tensors="pt")
        told = pair.get_text_features(**read)
        return told if isinstance(told, Tensor) else told.pooler_output

    scale = float(pair.logit_scale.detach().exp())
    texts = Texts(encode, scale, 0.0 if bias is None else float(bias.detach()))
    visual = Seen(pair)
    return Tower(visual, width_of(pair), classes, texts)


def width_of(pair: Any) -> int:
    """Width of the space that images and texts share."""
    if hasattr(pair, "visual_projection"):
        return pair.visual_projection.out_features
    return pair.config.vision_config.hidden_size
