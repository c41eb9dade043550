"""Image classifiers of transformers, from the hub or a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bella.data.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from bella.errors import BellaError, require
from bella.models import Opened


def open_hugging_face(name: str, classes: int, image_size: int | None, seed: int) -> Opened:
    """``AutoModelForImageClassification`` with ``classes`` outputs.

    Attention projections are adapted where the network has them, else every Linear but the head.

    Raises:
        BellaError: the network cannot be loaded.
    """
    transformers = require("transformers", "hf")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = transformers.AutoModelForImageClassification.from_pretrained(
                name, num_labels=classes, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise BellaError(f"transformers cannot load {name!r}: {first}") from None
    settings = _processor_settings(name)
    size = image_size or _size(settings, network)
    mean = tuple(255 * v for v in settings.get("image_mean", ())) or IMAGENET_MEAN
    std = tuple(255 * v for v in settings.get("image_std", ())) or IMAGENET_STD
    heads = [n for n in ("classifier", "score", "head") if hasattr(network, n)]
    return Opened(network.eval(), Preprocess(size, mean, std), targets_of(network), heads)


def targets_of(network: nn.Module) -> list[str]:
    """Suffixes of the layers to adapt: MLP pairs, else attention projections, else all Linears."""
    leaves = {
        name.rpartition(".")[2]
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }
    for group in (("fc1", "fc2"), ("query", "value"), ("q_proj", "v_proj")):
        if leaves.issuperset(group):
            return list(group)
    return sorted(leaves - {"classifier", "score", "head", "0", "1", "2", "3"})


def _size(settings: dict[str, Any], network: nn.Module) -> int:
    size = settings.get("size") or getattr(network.config, "image_size", None) or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    return int(size)


def _processor_settings(name: str) -> dict[str, Any]:
    """The network's preprocessor_config.json; empty where it has none."""
    path = Path(name) / "preprocessor_config.json"
    if not Path(name).is_dir():
        hub = require("huggingface_hub", "hf")
        try:
            path = Path(hub.hf_hub_download(name, "preprocessor_config.json"))
        except Exception:  # no such file there, or no network: ImageNet's constants then
            return {}
    return json.loads(path.read_text()) if path.exists() else {}
