"""What a user brings: images of two kinds, and a small network in a folder."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = ("day", "night")


def write_images(root: Path, count: int = 12, seed: int = 0) -> Path:
    """A folder with the classes ``day`` (bright) and ``night`` (dark), of uneven sizes."""
    random = np.random.default_rng(seed)
    for name, level in zip(CLASSES, (200, 40), strict=True):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            height, width = random.integers(32, 49, 2)
            pixels = random.integers(level - 30, level + 30, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return root


def write_table(path: Path, images: Path) -> Path:
    """The same images as a CSV of path,label, beside them."""
    rows = [f"{p.relative_to(path.parent)},{p.parent.name}" for p in sorted(images.rglob("*.png"))]
    path.write_text("\n".join(["path,label", *rows]) + "\n")
    return path


def write_network(folder: Path, seed: int = 0) -> Path:
    """A vision transformer of two small layers and 5 classes, as ``save_pretrained`` leaves it."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return folder
