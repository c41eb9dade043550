"""Networks of timm: a name of its list, ``hf-hub:<name>`` or ``local-dir:<folder>``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from bella.data.images import Preprocess
from bella.errors import BellaError, MissingExtraError
from bella.files import shortened
from bella.models.opened import Opened, guess_defaults, seeded


def read_preprocess(config: Mapping[str, Any], image_size: int | None = None) -> Preprocess:
    """The preprocessing that a timm network's ``pretrained_cfg`` describes.

    Args:
        config: with ``mean`` and ``std`` in 0..1, ``input_size`` (channels, height, width),
            ``crop_pct``, ``crop_mode`` and ``interpolation``.
        image_size: side of the images in pixels, in place of the configuration's.

    Raises:
        BellaError: pictures are neither cropped at their centre nor squeezed (``crop_mode``), the
            network wants other than three channels, or the configuration is damaged.
    """
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise BellaError(
            f"This network's preprocessing has crop_mode={mode!r}, which bella's lacks: it knows "
            "'center' and 'squash'."
        )
    try:
        channels, *size = config["input_size"]
        if channels != 3:
            raise BellaError(f"This network wants {channels} channels: bella's images have 3.")
        share = float(config.get("crop_pct") or 1.0)
        return Preprocess(
            image_size or tuple(size),
            mean=tuple(255 * m for m in config["mean"]),
            std=tuple(255 * s for s in config["std"]),
            # timm squashes the whole picture to the size / crop_pct and keeps its centre.
            crop=share if mode == "center" else None,
            squeeze=share if mode == "squash" else 1.0,
            interpolation=config.get("interpolation") or "bicubic",
        )
    except BellaError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BellaError(
            f"This network's pretrained_cfg is damaged ({shortened(error)})."
        ) from None


def open_timm(name: str, classes: int | None, image_size: int | None, seed: int) -> Opened:
    """A pre-trained network of timm with a head of ``classes``.

    Args:
        name: as ``timm.create_model`` takes it.
        classes: size of a fresh head; without it, the head as it was trained.
        image_size: side of the images in pixels; without it, the one of the training.
        seed: of the fresh head.

    Raises:
        BellaError: there is no such network, or its weights are out of reach.
        MissingExtraError: timm cannot be imported.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingExtraError(
            f"timm cannot be imported ({error}): `pip install timm torchvision`, with a "
            "torchvision that fits your torch."
        ) from error
    head = {} if classes is None else {"num_classes": classes}
    try:
        with seeded(seed):
            network = timm.create_model(name, pretrained=True, **head)
    except Exception as error:  # a name that is a stranger's folder fails in any way
        raise BellaError(
            f"timm cannot open {name!r} ({shortened(error)}): `timm.list_models(pretrained=True)` "
            "lists the names."
        ) from error
    if image_size is not None and hasattr(network, "set_input_size"):
        network.set_input_size((image_size, image_size))  # position embeddings are resampled
    preprocess = read_preprocess(network.pretrained_cfg, image_size)
    return Opened(network.eval(), preprocess, guess_defaults(network))
