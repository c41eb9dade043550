"""Digits: 1,797 handwritten digits of 8x8 grey pixels, which come with scikit-learn.

Source: Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI, 1998. CC-BY 4.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bella.data.images import Preprocess
from bella.data.labelled import ArrayImages
from bella.data.sets.base import DataSet
from bella.data.split import FRACTIONS
from bella.errors import require


def digits(folder: Path | None, preprocess: Preprocess, seed: int = 0) -> dict[str, ArrayImages]:
    """The parts of the digits; see `DataSet.read`. Grey from 0 to 16 becomes 0 to 255.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    found = require("sklearn.datasets", extra="fit").load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.tolist()
    return ArrayImages(images, labels, list("0123456789"), preprocess).split(FRACTIONS, seed)


DIGITS = DataSet(
    "digits",
    "Digits",
    "image",
    "1,797 handwritten digits of 8x8 grey pixels, 10 classes",
    {"train": "60 percent", "validation": "15 percent", "test": "25 percent, all drawn by class"},
    "pip install 'bella-bnn[fit]': they come with scikit-learn, under 1 MB",
    "Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI, 1998; CC-BY 4.0",
    digits,
)
