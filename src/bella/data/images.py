"""From an image file to the tensor a network was trained on.

A preprocessing is one box and one affine map: choose a box of the picture (all of it, its centre,
or a random part while training), resample that box to the network's size in a single step, and
normalise its pixels. Between the two stands the corruption, of those that measure a shift.

Files may be anybody's: only the usual formats are decoded (PIL knows some that start programs),
nothing is decoded that would be larger than ``PIL.Image.MAX_IMAGE_PIXELS``, and whatever a decoder
stumbles over is one sentence.
"""

from __future__ import annotations

import dataclasses
import io
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bella.data.corruptions import Corruption
from bella.errors import BellaError, nearest
from bella.files import check_ordinary, shortened, shown

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Mean of ImageNet's red, green and blue, in pixel units 0..255."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Standard deviation of ImageNet's red, green and blue, in pixel units 0..255."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM")
"""PIL's names of the formats that are decoded; a file's own content decides, not its name."""

LARGEST_SIDE = 16_384
"""Pixels that a side of a network's images may have."""

GROUND = (255, 255, 255)
"""The colour behind transparent pixels: white, as paper and browsers have it."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture."""


def _uniform(low: float, high: float) -> float:
    """A draw from torch's global generator, which `DataLoader` seeds anew in every worker."""
    return low + (high - low) * float(torch.rand(()))


@dataclass(frozen=True)
class Augment:
    """Random crops and flips for training (Szegedy et al. 2015, section 6), from torch's generator.

    Args:
        flip: probability of mirroring left to right, in 0..1.
        scale: range of the share of the box's area that is kept, in 0..1.
        ratio: range of the change of its aspect; the draw is uniform in the logarithm.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.6, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            value: Any = getattr(self, name)
            if not (
                isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
            ):
                raise BellaError(f"{name}={shown(value)} must be a range of two numbers.")
            object.__setattr__(self, name, tuple(value))
        if not (is_number(self.flip) and 0 <= self.flip <= 1):
            raise BellaError(
                f"flip={shown(self.flip)} is a probability: give a number from 0 to 1."
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise BellaError(f"scale={self.scale} must be a range within (0, 1], e.g. (0.6, 1.0).")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise BellaError(f"ratio={self.ratio} must be a range of positive numbers.")

    def draw_box(self, box: Box) -> Box:
        """A random box within ``box``."""
        left, top, right, bottom = box
        side = math.sqrt(_uniform(*self.scale))
        stretch = math.exp(_uniform(*map(math.log, self.ratio)) / 2)
        width = (right - left) * min(side * stretch, 1.0)
        height = (bottom - top) * min(side / stretch, 1.0)
        left = _uniform(left, right - width)
        top = _uniform(top, bottom - height)
        return left, top, left + width, top + height

    def draw_flip(self) -> bool:
        """Whether to mirror this time."""
        return _uniform(0.0, 1.0) < self.flip


@dataclass(frozen=True)
class Preprocess:
    """Turn a PIL image into the float32 tensor (3, height, width) that a network expects.

    The tensor is (pixel - mean) / std with pixels in 0..255. Resampling is antialiased.

    Args:
        size: (height, width) of the tensor, or one number for both.
        mean: per channel or one number for all, in pixel units 0..255.
        std: likewise.
        crop: ``None`` squeezes the whole picture into ``size``; a share in (0, 1] keeps its aspect
            and takes that share of the largest centred box (0.875 is the habit of ImageNet).
        squeeze: with ``crop=None``, the share of each side, about the centre, that is squeezed in
            (timm's squash with a ``crop_pct``).
        interpolation: a name of PIL's ``Image.Resampling``.
        augment: random crops and flips on top; see :meth:`plain`.
        corruption: of the resampled picture; see `bella.data.corruptions`.

    Raises:
        BellaError: an argument is out of its range.
    """

    size: int | Sequence[int]
    mean: float | Sequence[float] = IMAGENET_MEAN
    std: float | Sequence[float] = IMAGENET_STD
    crop: float | None = None
    interpolation: str = "bilinear"
    augment: Augment | None = None
    squeeze: float = 1.0
    corruption: Corruption | None = None

    def __post_init__(self) -> None:
        # One form inside, so that equal preprocessings compare equal and survive JSON.
        for name, count, kind in (("size", 2, int), ("mean", 3, float), ("std", 3, float)):
            value: Any = getattr(self, name)
            values = tuple(value) if isinstance(value, list | tuple) else (value,) * count
            if len(values) != count or not all(is_number(v) and kind(v) == v for v in values):
                raise BellaError(f"{name}={shown(value)} must be one number or {count} of them.")
            object.__setattr__(self, name, tuple(kind(v) for v in values))
        if not 1 <= min(self.height, self.width) <= max(self.height, self.width) <= LARGEST_SIDE:
            raise BellaError(
                f"size={self.size} must be positive, in pixels, and at most {LARGEST_SIDE}."
            )
        if min(self._channels("std").flatten().tolist()) <= 0:
            raise BellaError(f"std={self.std} must be positive, in pixel units 0..255.")
        if self.crop is not None and not (is_number(self.crop) and 0 < self.crop <= 1):
            raise BellaError(
                f"crop={shown(self.crop)} is a share of the picture: give None or (0, 1]."
            )
        if not (is_number(self.squeeze) and 0 < self.squeeze <= 1):
            raise BellaError(
                f"squeeze={shown(self.squeeze)} is a share of the sides: give a number in (0, 1]."
            )
        if self.crop is not None and self.squeeze != 1:
            raise BellaError(
                "Give crop or squeeze: a picture is cropped at its aspect or squeezed."
            )
        known = [method.name.lower() for method in Image.Resampling]
        if self.interpolation not in known:
            raise BellaError(
                f"interpolation={shown(self.interpolation)} is unknown: near are "
                f"{nearest(str(self.interpolation)[:80], known)}."
            )
        if not isinstance(self.augment, Augment | None):
            raise BellaError(f"augment={shown(self.augment)} must be an Augment, or None.")
        if not isinstance(self.corruption, Corruption | None):
            raise BellaError(f"corruption={shown(self.corruption)} must be a Corruption, or None.")
        if self.corruption is not None and self.corruption.side is None:
            self.corruption.check_size(min(self.height, self.width))

    @property
    def height(self) -> int:
        """Rows of the tensor."""
        return self.size[0]  # type: ignore[index]

    @property
    def width(self) -> int:
        """Columns of the tensor."""
        return self.size[1]  # type: ignore[index]

    def _channels(self, name: str) -> Tensor:
        return torch.tensor(getattr(self, name), dtype=torch.float32).view(3, 1, 1)

    def _box(self, width: int, height: int) -> Box:
        """The box of a ``width`` by ``height`` picture that becomes the tensor."""
        if self.crop is None:
            aside, above = (1 - self.squeeze) / 2 * width, (1 - self.squeeze) / 2 * height
            return aside, above, width - aside, height - above
        pixels = self.crop * min(width / self.width, height / self.height)
        kept_width, kept_height = pixels * self.width, pixels * self.height
        left, top = (width - kept_width) / 2, (height - kept_height) / 2
        return left, top, left + kept_width, top + kept_height

    def __call__(self, image: Image.Image) -> Tensor:
        """The tensor of one picture."""
        pixels = torch.from_numpy(np.array(self.picture(image)))
        return self._normalised(pixels.permute(2, 0, 1).to(torch.float32))

    def picture(self, image: Image.Image) -> Image.Image:
        """What the network sees of one picture, before its pixels are normalised."""
        box = self._box(*image.size)
        mirror = False
        if self.augment is not None:
            box, mirror = self.augment.draw_box(box), self.augment.draw_flip()
        # Rounding must not push the box over the picture's edge.
        box = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
        method = Image.Resampling[self.interpolation.upper()]
        image = to_rgb(image).resize(self._corrupted_at(), method, box=box)
        if mirror:
            image = ImageOps.mirror(image)
        if self.corruption is not None:
            image = self.corruption(image).resize((self.width, self.height), method)
        return image

    def _corrupted_at(self) -> tuple[int, int]:
        """Width and height of the box when it is corrupted; the network's where it is not."""
        if self.corruption is None or self.corruption.side is None:
            return self.width, self.height
        scale = self.corruption.side / min(self.width, self.height)
        return round(scale * self.width), round(scale * self.height)

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (self._channels(name).to(pixels) for name in ("mean", "std"))
        return ((pixels - mean) / std).contiguous()

    def normalised(self, unit: Tensor) -> Tensor:
        """The network's inputs (..., 3, height, width) from pixels in 0..1; differentiable."""
        return self._normalised(255 * unit)

    def unit(self, inputs: Tensor) -> Tensor:
        """Pixels in 0..1 from a network's inputs: `normalised` undone, up to rounding.

        Raises:
            BellaError: what comes out lies outside 0..1, so that the inputs were normalised in
                another way.
        """
        mean, std = (self._channels(name).to(inputs) for name in ("mean", "std"))
        unit = (inputs * std + mean) / 255
        low, high = float(unit.min()), float(unit.max())
        if not -1e-3 < low <= high < 1 + 1e-3:
            raise BellaError(
                f"These inputs would be pixels from {low:.3g} to {high:.3g} and not 0..1: they are "
                "not normalised by this preprocessing."
            )
        return unit.clamp(0, 1)

    def plain(self) -> Preprocess:
        """The same without augmentation: what every part but the training part wants."""
        return dataclasses.replace(self, augment=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        if self.corruption is None:  # as it was written before there were any
            del values["corruption"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The preprocessing that ``to_dict`` wrote down, also after a trip through JSON.

        Raises:
            BellaError: an unknown, missing or wrong entry.
        """
        try:
            values = dict(values)
            if values.get("augment") is not None:
                values["augment"] = Augment(**values["augment"])
            if values.get("corruption") is not None:
                values["corruption"] = Corruption(**values["corruption"])
            return cls(**values)
        except BellaError:
            raise
        except (TypeError, ValueError) as error:
            raise BellaError(
                f"This is not a preprocessing that bella saved: {shortened(error)}."
            ) from error


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; what is transparent lies on white (`GROUND`).

    The colour that a file keeps under transparent pixels is seen by nobody, and two pictures that
    look the same are one input.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, (*GROUND, 255)), above).convert(
        "RGB"
    )


def load_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Read one image as 8-bit RGB, upright, transparency on white, of several frames the first.

    The image is the file at ``path``, or ``content`` of that name. 16-bit grey images are scaled to
    8 bits (PIL itself would clip them at 255). Where the EXIF data cannot be read nobody knows
    which side is up, and the picture stays as it is stored.

    Raises:
        BellaError: the file is missing, is no image, is cut short, has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``, or has pixels without a range.
    """
    try:
        if content is None:
            check_ordinary(Path(path))
        with Image.open(
            path if content is None else io.BytesIO(content), formats=FORMATS
        ) as opened:
            _check_pixels(path, opened)
            opened.load()
            image = _upright(opened)
    except BellaError:
        raise
    except FileNotFoundError as error:
        raise BellaError(f"There is no image at {path}: check the path.") from error
    except Exception as error:  # decoders raise struct.error, KeyError, EOFError, ... as well
        raise BellaError(
            f"{path} cannot be read as an image ({shortened(error)}): replace it or take it out of "
            "the data."
        ) from error
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        hidden = image.info.get("transparency")  # the value of grey that is see-through
        image = Image.fromarray((deep >> 8).astype(np.uint8))
        if isinstance(hidden, int):
            image.paste(GROUND[0], mask=Image.fromarray(deep == hidden))
    if image.mode in ("I", "F"):
        raise BellaError(
            f"{path} has pixels of mode {image.mode!r}, whose range is not known: save it with 8 "
            "or 16 bits."
        )
    return to_rgb(image)


def _check_pixels(path: str | Path, image: Image.Image) -> None:
    """Refuse a picture whose pixels are too many, before they are decoded: a file of some kilobytes
    may stand for gigabytes."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise BellaError(
            f"{path} has {image.width}x{image.height} pixels, more than the {limit:,} that are "
            "decoded: make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if it can be trusted."
        )


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say, where they can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the data are a camera's or an editor's, and broken in many ways
        return image.copy()
