"""Corrupted images: the 19 kinds of ImageNet-C in five severities, decided by a seed.

A kept package (``imagecorruptions``, which ``imagecorruptions-imaug`` brings) does the images. What
a corruption draws is decided by the seed and by the picture itself, so that a picture looks the
same in every order, part and process; the five severities of one picture share their draws, so that
they differ by their strength alone.

The strengths are those that ImageNet-C has for pictures of 224 pixels, and on far smaller ones they
do not grow as they should (CIFAR-10-C has others for 32 pixels). Below `SMALLEST` pixels a
corruption is refused; with ``side`` pictures are corrupted at that size and then made as small as
the network wants them.

Source:
    Hendrycks and Dietterich 2019, Benchmarking neural network robustness to common corruptions and
    perturbations; Michaelis et al. 2019, Benchmarking robustness in object detection (the package).
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from bella.errors import BellaError, nearest, require

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
)
"""The fifteen of the benchmark, and the four that it keeps for validation."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 96
"""Pixels of the shorter side below which severities do not grow as they should."""

SEEDED = ("glass_blur", "impulse_noise")
"""Kinds that draw from a generator of their own; the others from NumPy's global one."""

_TURN = threading.Lock()
"""NumPy's global generator belongs to the process: corruptions in threads take turns."""


@dataclass(frozen=True)
class Corruption:
    """One kind in one severity, from picture to picture.

    Args:
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of what it draws, together with the picture.
        side: pixels of the shorter side at which pictures are corrupted; ``None`` for the size that
            the network takes.

    Raises:
        BellaError: an argument out of its range.
    """

    kind: str
    severity: int
    seed: int = 0
    side: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in CORRUPTIONS:
            raise BellaError(
                f"The corruption {self.kind!r} is unknown: near are "
                f"{nearest(str(self.kind)[:80], CORRUPTIONS)}."
            )
        if isinstance(self.severity, bool) or self.severity not in SEVERITIES:
            raise BellaError(f"severity={self.severity!r}: choose a whole number from 1 to 5.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise BellaError(f"seed={self.seed!r}: give a whole number.")
        if self.side is not None:
            self.check_size(self.side)

    def check_size(self, side: int) -> None:
        """Refuse a shorter side at which severities do not grow as they should.

        Raises:
            BellaError: it is below `SMALLEST` pixels.
        """
        if isinstance(side, bool) or not isinstance(side, int) or side < SMALLEST:
            raise BellaError(
                f"Corruptions are made for pictures of 224 pixels, and at {side!r} severities do "
                f"not grow as they should: give a side of at least {SMALLEST}, at which pictures "
                "are corrupted before they are made as small as the network wants."
            )

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The corrupted picture, in 8-bit RGB and of the same size.

        Raises:
            MissingExtraError: the package or what it needs is not installed.
        """
        package = require("imagecorruptions", "corruptions")
        pixels = np.asarray(picture.convert("RGB"))
        told = f"{self.seed} {self.kind} {pixels.shape}".encode() + pixels.tobytes()
        seed = int.from_bytes(hashlib.sha256(told).digest()[:4])
        own = {"seed": seed} if self.kind in SEEDED else {}
        with _TURN:
            state = np.random.get_state()
            try:
                np.random.seed(seed)
                found = package.corrupt(pixels, self.severity, self.kind, **own)
            finally:
                np.random.set_state(state)
        return Image.fromarray(found)


Images = TypeVar("Images")


def corrupted(
    images: Images, kind: str, severity: int, *, seed: int = 0, side: int | None = None
) -> Images:
    """The same images under a corruption: a data set with a `bella.data.Preprocess`, not augmented.

    Args:
        images: any of bella's image data sets, with labels or without.
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of what the corruption draws.
        side: see `Corruption`.

    Raises:
        BellaError: an argument out of its range, or a network whose pictures are too small while no
            ``side`` was given.
    """
    preprocess: Any = images.preprocess  # type: ignore[attr-defined]
    part = copy.copy(images)
    part.preprocess = replace(  # type: ignore[attr-defined]
        preprocess.plain(), corruption=Corruption(kind, severity, seed, side)
    )
    return part


def corruptions_named(names: Sequence[str]) -> list[str]:
    """Kinds by name; ``all`` for all of them.

    Raises:
        BellaError: one that is unknown.
    """
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(CORRUPTIONS if name == "all" else (Corruption(name, 1).kind,))
    return list(found)
