"""Networks of timm."""

from __future__ import annotations

import torch
from torch import nn

from bella.data.images import Preprocess
from bella.errors import BellaError, require
from bella.models import Opened


def open_timm(name: str, classes: int, image_size: int | None, seed: int) -> Opened:
    """``timm.create_model`` with pre-trained weights and ``classes`` outputs.

    Raises:
        BellaError: timm has no such network, or its weights cannot be fetched.
    """
    timm = require("timm", "timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = timm.create_model(name, pretrained=True, num_classes=classes)
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise BellaError(f"timm cannot open {name!r}: {first}") from None
    settings = network.pretrained_cfg
    head = network.get_classifier()
    heads = [n for n, module in network.named_modules() if module is head]
    preprocess = Preprocess(
        image_size or settings["input_size"][-1],
        tuple(255 * v for v in settings["mean"]),
        tuple(255 * v for v in settings["std"]),
        crop=True,
    )
    targets = sorted(
        {
            n.rpartition(".")[2]
            for n, module in network.named_modules()
            if isinstance(module, nn.Linear) and n not in heads
        }
    ) or [
        n
        for n, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ]
    return Opened(network.eval(), preprocess, targets, heads)
