"""From image files to tensors, with PIL and torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bella.errors import BellaError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def load_image(path: str | Path) -> Image.Image:
    """An image file, decoded, in RGB.

    Raises:
        BellaError: the file is missing or no image; the sentence names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise BellaError(f"There is no image {path}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BellaError(f"{path} cannot be read as an image ({error}): remove it.") from None


@dataclass(frozen=True)
class Preprocess:
    """From a PIL image to a network's input (3, size, size), float32.

    Attributes:
        size: height and width in pixels.
        mean: subtracted, in units of 0 to 255, one value or one for each channel.
        std: divided by, in the same units.
        crop: resize the short side and cut the centre; otherwise both sides are resized.
        flip: in training, mirror left and right at random (then the data are not fixed, and the
            shared prefix cannot be cached).
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: bool = False
    flip: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize and normalise."""
        image = image.convert("RGB")
        if self.crop:
            scale = self.size / min(image.size)
            width, height = (max(self.size, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        else:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(2)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous()

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` makes the same preprocessing of them."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`."""
        lists = {key: tuple(v) if isinstance(v, Sequence) else v for key, v in values.items()}
        return Preprocess(**lists)  # type: ignore[arg-type]
