"""Opening a pre-trained network by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bella.errors import BellaError, nearest
from bella.models.efficientnet_lite import open_efficientnet_lite0
from bella.models.from_hub import ADAPTER
from bella.models.hugging_face import open_hugging_face
from bella.models.open_clip import open_clip
from bella.models.opened import Opened, check_counts, check_patches, check_runs
from bella.models.own import is_function, open_own
from bella.models.timm import open_timm
from bella.models.vit_s import open_vit_s14

Factory = Callable[[str, int | None, int | None, int], Opened]
"""(name behind the colon, classes, image_size, seed) -> the opened network."""

registry: dict[str, Factory] = {
    "efficientnet-lite0": open_efficientnet_lite0,
    "vit-s14": open_vit_s14,
    "hf:": open_hugging_face,
    "timm:": open_timm,
    "open_clip:": open_clip,
}
"""Factories by name; one that ends in a colon opens everything behind that colon."""

FOLDERS = {
    "open_clip_config.json": "open_clip:local-dir:",
    ADAPTER: "hf:",
    "config.json": "hf:",
}
"""What a folder is, by a file in it; timm's configuration says so itself."""


def open_network(
    name: str,
    classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    *,
    own_code: bool = True,
    quantised: str | None = None,
) -> Opened:
    """Open a pre-trained image classifier for (network, preprocess, defaults).

    Args:
        name: ``efficientnet-lite0`` or ``vit-s14``; ``hf:``, ``timm:`` or ``open_clip:`` and a name
            of theirs; a folder that one of them saved, or of a PEFT adapter, which is merged into
            its network; ``package.module:function``, which is called for the network; or a name
            that was added to ``registry``.
        classes: size of a fresh head; without it, the head as it was trained.
        image_size: side of the images, in pixels; without it, the network's own.
        seed: of the fresh head.
        own_code: whether ``package.module:function`` may be called: not where a stranger's file
            says the name.
        quantised: hold the base of a network of transformers as ``4bit``, ``8bit`` or ``int8``, see
            `bella.models.open_task`.

    Raises:
        BellaError: the name is unknown (the message lists near ones) or the arguments do not fit.
        MissingExtraError: the library that has the network is not installed.
    """
    check_counts(classes, image_size)
    family, colon, rest = full_name(name).partition(":")
    if colon and not rest:
        raise BellaError(f"{name!r} is only a family: write the network's name behind the colon.")
    if quantised is not None:
        if family + colon != "hf:":
            raise BellaError(
                f"quantised={quantised!r} is for networks of transformers, which know how to hold "
                f"codes: leave it out with {name!r}, or name hf:..."
            )
        opened = open_hugging_face(rest, classes, image_size, seed, quantised)
    elif family + colon in registry:
        opened = registry[family + colon](rest, classes, image_size, seed)
    elif is_function(name):
        if not own_code:
            raise BellaError(
                f"This run's network is made by the function {name}, and a run folder may be "
                "anybody's: say --own-code (own_code=True) if you trust that code."
            )
        opened = open_own(name, classes, image_size, seed)
    else:
        known = nearest(name, registry)
        raise BellaError(
            f"No network is called {name!r}: near are {known}; or name a folder, or "
            "package.module:function."
        )
    check_patches(name, opened.network, image_size)
    check_runs(name, opened)
    return opened


def full_name(name: str) -> str:
    """A name; of a folder, the family that opens it and the folder from the root on.

    Raises:
        BellaError: the folder holds no network that is known.
    """
    for family in ("hf:", "timm:local-dir:", "open_clip:local-dir:"):
        rest = name.removeprefix(family)
        if name.startswith(family) and rest and Path(rest).is_dir():
            return f"{family}{Path(rest).absolute()}"
    folder = Path(name)
    if name in registry or not folder.is_dir():
        return name
    for file, family in FOLDERS.items():
        if (folder / file).is_file():
            timms = file == "config.json" and '"pretrained_cfg"' in (folder / file).read_text()
            return f"{'timm:local-dir:' if timms else family}{folder.absolute()}"
    raise BellaError(f"The folder {name} holds no network: it lacks {', '.join(FOLDERS)} alike.")
