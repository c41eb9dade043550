"""Image classifiers of the Hugging Face hub, or of a folder that transformers saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from bella.data.images import Preprocess
from bella.errors import BellaError, require
from bella.models.opened import Opened, first_line, guess_defaults, seeded


def _sides(size: Any) -> tuple[int, int]:
    """(height, width) of a configuration's size, which has had three forms over the years."""
    if isinstance(size, Mapping):
        square = size.get("shortest_edge")
        size = size.get("height", square), size.get("width", square)
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def read_preprocess(config: Mapping[str, Any], image_size: int | None = None) -> Preprocess:
    """The preprocessing that an image processor's configuration describes.

    Transformers' own image processors are not used: the fast ones need torchvision.

    Args:
        config: the content of ``preprocessor_config.json``.
        image_size: side of the images in pixels, in place of the configuration's.

    Raises:
        BellaError: the network wants the colours in another order.
    """
    if config.get("do_flip_channel_order"):
        raise BellaError(
            "This network wants its colours as BGR, which bella's preprocessing lacks."
        )
    # transformers computes (pixel * factor - mean) / std, bella (pixel - mean) / std.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    normalise = config.get("do_normalize", True)
    mean = config.get("image_mean", (0.5,) * 3) if normalise else (0.0,) * 3
    std = config.get("image_std", (0.5,) * 3) if normalise else (1.0,) * 3
    size = config.get("size", 224)
    resized, crop = _sides(size), None
    if isinstance(size, Mapping) and "shortest_edge" in size:
        crop = config.get("crop_pct", 1.0)
        # ConvNeXt's processor, the one with a crop_pct, squeezes the whole picture from 384 on.
        if "crop_pct" in config and resized[0] >= 384:
            crop = None
    if config.get("do_center_crop") and config.get("crop_size"):
        cropped = _sides(config["crop_size"])
        resized, crop = cropped, min(cropped[0] / resized[0], cropped[1] / resized[1], 1.0)
    return Preprocess(
        image_size or resized,
        mean=tuple(m / factor for m in mean),
        std=tuple(s / factor for s in std),
        crop=crop,
        interpolation=Image.Resampling(config.get("resample", 2)).name.lower(),
    )


def _processor_config(name: str) -> Mapping[str, Any]:
    mixin = require("transformers.image_processing_base", extra="hf").ImageProcessingMixin
    try:
        return mixin.get_image_processor_dict(name)[0]
    except OSError:
        return {}


def open_hugging_face(name: str, classes: int | None, image_size: int | None, seed: int) -> Opened:
    """A network of ``AutoModelForImageClassification`` with a head of ``classes``.

    Args:
        name: on the hub, or a folder.
        classes: size of a fresh head; without it, the head as it was saved.
        image_size: side of the images in pixels; without it, the image processor's, else the
            network's own.
        seed: of the fresh head.

    Raises:
        BellaError: there is no such network.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", extra="hf")
    head = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    try:
        with seeded(seed):
            network = transformers.AutoModelForImageClassification.from_pretrained(name, **head)
    except (OSError, ValueError) as error:
        raise BellaError(
            f"{name!r} cannot be opened as an image classifier ({first_line(error)}): give the "
            "name of one on the hub, or a folder that `save_pretrained` wrote."
        ) from error
    config = {"size": getattr(network.config, "image_size", 224)} | dict(_processor_config(name))
    return Opened(network.eval(), read_preprocess(config, image_size), guess_defaults(network))
