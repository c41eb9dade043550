"""Networks of many kinds, small, with their inputs."""

from __future__ import annotations

import torch
import transformers
from helpers import mlp
from torch import nn

import bella
from bella.likelihood import logits_of

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=3))


def clip():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))


def bert():
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=3,
        n_head=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        use_cache=False,
    )
    return transformers.GPT2ForSequenceClassification(config)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def swin():
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinForImageClassification(config)


def lite():
    from bella.models import efficientnet_lite0

    return efficientnet_lite0(3, image_size=64)


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def images(size=16):
    return {"args": (torch.randn(4, 3, size, size),)}


def tokens():
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[0, 4:] = 0
    return {"input_ids": torch.randint(2, 50, (4, 7)), "attention_mask": mask}


NETWORKS = {
    "vit": (vit, images, r".*layers\.[12]\..*(fc[12]|q_proj|query)", ("classifier",)),
    "clip": (clip, images, r".*layers\.[12].*fc[12]", ()),
    "bert": (bert, tokens, r".*layer\.[12]\..*(query|value)", ("classifier",)),
    "gpt2": (gpt2, tokens, r".*h\.[12]\..*(c_attn|c_fc)", ("score",)),
    "resnet": (resnet, lambda: images(32), r".*stages\.1\..*convolution", ("classifier",)),
    "swin": (swin, lambda: images(32), r".*layers\.1\..*(q_proj|query|fc1)", ("classifier",)),
    "lite": (lite, lambda: images(64), r"_blocks\.15\._(expand|project)_conv", ("_fc",)),
    "encoder": (
        encoder,
        lambda: {"args": (torch.randn(4, 5, 16),)},
        r"layers\.[12]\.linear[12]",
        (),
    ),
    "sequential": (
        lambda: mlp(dtype=torch.float32),
        lambda: {"args": (torch.randn(4, 4),)},
        ("2",),
        (),
    ),
}


def call(network, inputs):
    kwargs = dict(inputs)
    outputs = network(*kwargs.pop("args", ()), **kwargs)
    pooled = getattr(outputs, "pooler_output", None)
    return logits_of(outputs) if pooled is None else pooled


def make(name, particles=3, **options):
    build, inputs, target, heads = NETWORKS[name]
    torch.manual_seed(0)
    network = build().eval()
    posterior = bella.low_rank(
        network, particles, 2, target, modules_to_save=heads, b_std=0.2, **options
    )
    torch.manual_seed(1)
    return posterior, inputs()


class Skips(nn.Module):
    """Its input is needed again after the blocks, outside their arguments."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = torch.tanh(block(h))
        return h * x
