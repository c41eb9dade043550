"""Image classifiers of the Hugging Face hub, or of a folder that transformers saved."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from bella.data.images import Preprocess
from bella.errors import BellaError, require
from bella.files import shortened, shown
from bella.models.from_hub import load, tokenizer_of
from bella.models.opened import Opened, guess_defaults, seeded
from bella.models.towers import tower_of

_SQUARE = ("DeiT", "EfficientNet", "Perceiver")
"""Image processors that squeeze a picture into a square before they crop it, also where an old
configuration writes the size as one number; of the others that crop, such a number is the short
side."""


def _sides(size: Any) -> tuple[int, int]:
    """(height, width) of a configuration's size, which has had three forms over the years.

    Raises:
        BellaError: it has yet another one.
    """
    if isinstance(size, Mapping):
        given = {name for name, value in size.items() if value is not None}
        if given == {"shortest_edge"}:
            size = size["shortest_edge"]
        elif given == {"height", "width"}:
            size = size["height"], size["width"]
        else:
            raise BellaError(
                f"This network's preprocessing gives the size of images by {shown(sorted(given))}: "
                "bella knows height and width, or shortest_edge."
            )
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def _share(part: tuple[int, int], whole: tuple[float, float]) -> float:
    """The share of each side that a centre crop keeps.

    Raises:
        BellaError: it differs between the sides, or is more than there is.
    """
    shares = part[0] / whole[0], part[1] / whole[1]
    if not math.isclose(*shares, rel_tol=0.01) or max(shares) > 1:
        raise BellaError(
            f"This network's preprocessing takes {part[0]}x{part[1]} pixels out of "
            f"{whole[0]:g}x{whole[1]:g}: bella knows crops of the same share of both sides."
        )
    return min(shares)


def read_preprocess(config: Mapping[str, Any], image_size: int | None = None) -> Preprocess:
    """The preprocessing that an image processor's configuration describes.

    Transformers' own image processors are not used: the fast ones need torchvision. What they do to
    a picture depends on their name, too: LeViT's, PoolFormer's, ConvNeXt's, Perceiver's and
    EfficientNet's have habits of their own.

    Args:
        config: the content of ``preprocessor_config.json``.
        image_size: side of the images in pixels, in place of the configuration's.

    Raises:
        BellaError: it describes what bella's preprocessing lacks (colours as BGR, padding, sizes by
            the long side, no resizing), or is damaged.
    """
    try:
        return _read_preprocess(config, image_size)
    except BellaError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise BellaError(
            f"This network's preprocessor_config.json is damaged ({shortened(error)})."
        ) from None


def _read_preprocess(config: Mapping[str, Any], image_size: int | None) -> Preprocess:
    lacking = {
        "do_flip_channel_order": "wants its colours as BGR",
        "do_pad": "pads its images",
        "do_thumbnail": "makes thumbnails",
        "do_align_long_axis": "turns its images",
    }
    for name, said in lacking.items():
        if config.get(name):
            raise BellaError(f"This network {said}, which bella's preprocessing lacks.")
    if not config.get("do_resize", True):
        raise BellaError(
            "This network's preprocessing leaves images at their own sizes, which cannot share a "
            "batch: set do_resize and size in its preprocessor_config.json."
        )
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = re.sub(r"(ImageProcessor|FeatureExtractor).*", "", kind)
    # transformers computes (pixel * factor - offset - mean) / std, bella (pixel - mean) / std.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    offset = 1.0 if config.get("rescale_offset") and config.get("do_rescale", True) else 0.0
    normalise = config.get("do_normalize", True)
    mean = _three(config.get("image_mean", 0.5)) if normalise else (0.0,) * 3
    std = _three(config.get("image_std", 0.5)) if normalise else (1.0,) * 3
    if family == "EfficientNet" and config.get("include_top", True):
        # Trained that way: what is normalised is divided by image_std once more.
        again = _three(config.get("image_std", 0.5))
        std = tuple(s * t for s, t in zip(std, again, strict=True))
    size, crop, squeeze = _box(config, family)
    return Preprocess(
        image_size or size,
        mean=tuple((m + offset) / factor for m in mean),
        std=tuple(s / factor for s in std),
        crop=crop,
        squeeze=squeeze,
        interpolation=Image.Resampling(config.get("resample", 2)).name.lower(),
    )


def _three(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * 3


def _box(config: Mapping[str, Any], family: str) -> tuple[tuple[int, int], float | None, float]:
    """Size, ``crop`` and ``squeeze`` of the preprocessing."""
    size = config.get("size", 224)
    resized = _sides(size)
    cuts = bool(config.get("do_center_crop") and config.get("crop_size"))
    keeps_aspect = isinstance(size, Mapping) and "shortest_edge" in size
    if not isinstance(size, Mapping):
        keeps_aspect = cuts and family not in _SQUARE
    percent = config.get("crop_pct") or 1.0
    if not cuts:
        if not keeps_aspect:
            return resized, None, 1.0
        # ConvNeXt's processor, the one with a crop_pct, squeezes the whole picture from 384 on.
        whole = "crop_pct" in config and resized[0] >= 384
        return resized, None if whole else percent, 1.0
    cropped = _sides(config["crop_size"])
    if family == "Perceiver":  # crops first, by the ratio of the two sizes
        return resized, _share(resized, cropped), 1.0
    scale = 256 / 224 if family == "Levit" else 1 / percent
    share = _share(cropped, (scale * resized[0], scale * resized[1]))
    if keeps_aspect or family == "PoolFormer":
        return cropped, share, 1.0
    return cropped, None, share


def _processor_config(name: str) -> Mapping[str, Any]:
    """The content of ``preprocessor_config.json``; empty where there is none.

    Raises:
        BellaError: it is damaged.
    """
    mixin = require("transformers.image_processing_base", extra="hf").ImageProcessingMixin
    try:
        found = mixin.get_image_processor_dict(name)[0]
    except OSError as error:
        if "valid JSON" in str(error):
            raise BellaError(f"preprocessor_config.json of {name!r} is no JSON.") from None
        return {}
    except Exception as error:
        raise BellaError(
            f"preprocessor_config.json of {name!r} cannot be read ({shortened(error)})."
        ) from error
    if not isinstance(found, Mapping):
        raise BellaError(f"preprocessor_config.json of {name!r} holds no mapping.")
    return found


def preprocess_of(name: str, side: int, image_size: int | None = None) -> Preprocess:
    """A network's preprocessing, by its folder or name on the hub.

    Args:
        name: of the network.
        side: of its images in pixels, where it has no image processor.
        image_size: in place of either.

    Raises:
        BellaError: see `read_preprocess`.
    """
    return read_preprocess({"size": side} | dict(_processor_config(name)), image_size)


def open_hugging_face(
    name: str,
    classes: int | None,
    image_size: int | None,
    seed: int,
    quantised: str | None = None,
) -> Opened:
    """An image classifier with a head of ``classes``.

    A network of ``AutoModelForImageClassification``; or, of a pair that was trained on images and
    texts (CLIP, SigLIP) and has no classes yet, the image tower, see `bella.models.towers`.

    Args:
        name: on the hub, or a folder; of a PEFT adapter too, see `bella.models.from_hub`.
        classes: size of a fresh head; without it, the head as it was saved.
        image_size: side of the images in pixels; without it, the image processor's, else the
            network's own.
        seed: of the fresh head.
        quantised: how the base is held, see `bella.models.from_hub.load`.

    Raises:
        BellaError: there is no such network.
        MissingExtraError: transformers is not installed.
    """
    require("transformers", extra="hf")
    if _is_pair(name):
        return _open_pair(name, classes, image_size, seed, quantised)
    head: dict[str, Any] = {}
    if classes is not None:
        head = {"num_labels": classes, "ignore_mismatched_sizes": True}
    network = load(
        "AutoModelForImageClassification",
        name,
        "an image classifier",
        seed=seed,
        quantised=quantised,
        **head,
    )
    config: Any = network.config
    side = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return Opened(network, preprocess_of(name, side, image_size), guess_defaults(network))


PAIRS = ("clip", "siglip")
"""Kinds of networks that were trained on images with their texts, by transformers' names."""


def _is_pair(name: str) -> bool:
    """Whether a network is one of `PAIRS` without classes of its own."""
    auto = require("transformers", extra="hf").AutoConfig
    try:
        config = auto.from_pretrained(name, trust_remote_code=False)
    except Exception:
        return False  # opening it says what is wrong with the name
    fitted = any("ForImageClassification" in kind for kind in config.architectures or ())
    return config.model_type in PAIRS and not fitted


def _open_pair(
    name: str, classes: int | None, image_size: int | None, seed: int, quantised: str | None
) -> Opened:
    """The image tower of a pair.

    Raises:
        BellaError: no number of classes, or no such network.
    """
    if classes is None:
        raise BellaError(f"{name!r} has no classes of its own: say how many there are.")
    pair: Any = load(
        "AutoModel", name, "a network of images and texts", seed=seed, quantised=quantised
    )
    with seeded(seed):
        network = tower_of(pair, tokenizer_of(name), classes).eval()
    side = pair.config.vision_config.image_size
    return Opened(network, preprocess_of(name, side, image_size), guess_defaults(network))
