"""Networks of open_clip: ``NAME/TAG`` of its list, ``hf-hub:NAME`` or ``local-dir:FOLDER``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bella.data.images import Preprocess
from bella.errors import BellaError, MissingExtraError
from bella.files import shortened
from bella.models.opened import Opened, guess_defaults, seeded
from bella.models.towers import Texts, Tower


def read_preprocess(config: Mapping[str, Any], image_size: int | None = None) -> Preprocess:
    """The preprocessing that an image tower's ``preprocess_cfg`` describes.

    Args:
        config: with ``size``, ``mean`` and ``std`` in 0..1, ``interpolation`` and ``resize_mode``.
        image_size: side of the images in pixels, in place of the configuration's.

    Raises:
        BellaError: pictures are padded to their longer side.
    """
    mode = config.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise BellaError(
            f"This network's preprocessing has resize_mode={mode!r}, which bella's lacks: it "
            "knows 'shortest' and 'squash'."
        )
    size = config["size"]
    return Preprocess(
        image_size or (tuple(size) if isinstance(size, list | tuple) else size),
        mean=tuple(255 * m for m in config["mean"]),
        std=tuple(255 * s for s in config["std"]),
        crop=1.0 if mode == "shortest" else None,
        interpolation=config.get("interpolation") or "bicubic",
    )


def open_clip(name: str, classes: int | None, image_size: int | None, seed: int) -> Opened:
    """The image tower of a network of open_clip, with a head of ``classes``.

    Its attention is ``nn.MultiheadAttention``; by default its MLPs are adapted. See
    `bella.models.split_attention` for its projections.

    Args:
        name: ``ViT-B-32/openai``, say, or ``hf-hub:...`` or ``local-dir:...``.
        classes: size of the head.
        image_size: side of the images in pixels; without it, the one of the training.
        seed: of the fresh head.

    Raises:
        BellaError: no such network, or no classes.
        MissingExtraError: open_clip cannot be imported.
    """
    try:
        library: Any = importlib.import_module("open_clip")
    except ImportError as error:
        raise MissingExtraError(
            f"open_clip cannot be imported ({error}): `pip install open_clip_torch`, with a "
            "torchvision that fits your torch."
        ) from error
    if classes is None:
        raise BellaError(f"open_clip:{name} has no classes of its own: say how many there are.")
    model, tag = (name, None) if ":" in name else (name.partition("/")[0], name.partition("/")[2])
    if tag == "":
        tags = ", ".join(library.list_pretrained_tags_by_model(model)[:6])
        raise BellaError(
            f"open_clip:{name} does not say which weights: write NAME/TAG"
            + (f", tags of {model} are {tags}." if tags else ".")
        )
    try:
        with seeded(seed):
            pair = library.create_model(
                model, pretrained=tag, force_image_size=image_size, require_pretrained=True
            ).eval()
            tokenizer = library.get_tokenizer(model)
            network = tower(pair, tokenizer, classes)
    except Exception as error:
        raise BellaError(
            f"open_clip cannot open {name!r} ({shortened(error)}): `open_clip.list_pretrained()` "
            "lists the names."
        ) from error
    preprocess = read_preprocess(pair.visual.preprocess_cfg, image_size)
    return Opened(network.eval(), preprocess, guess_defaults(network))


def tower(pair: Any, tokenizer: Any, classes: int) -> Tower:
    """The image half of a pair of open_clip, with its text half for a start."""
    bias = getattr(pair, "logit_bias", None)

    def encode(prompts: list[str]) -> Tensor:
        return pair.encode_text(tokenizer(prompts))

    with torch.no_grad():
        side = pair.visual.image_size
        height, width = side if isinstance(side, list | tuple) else (side, side)
        features = pair.visual(torch.zeros(1, 3, height, width))
    texts = Texts(
        encode,
        float(pair.logit_scale.detach().exp()),
        0.0 if bias is None else float(bias.detach()),
    )
    return Tower(pair.visual, features.shape[-1], classes, texts)
