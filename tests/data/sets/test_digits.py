import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bella.data import Preprocess, open_data
from bella.errors import BellaError


def test_digits_are_scikit_learns():
    parts = open_data("digits", Preprocess(8, mean=0.0, std=255 / 16))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 1078,
        "validation": 269,
        "test": 450,
    }
    pixels = sorted(image.tobytes() for part in parts.values() for image in part.images)
    wanted = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert pixels == sorted(image.tobytes() for image in wanted)
    x, label = parts["test"][0]
    assert parts["test"].classes[label] == str(label)
    known = torch.tensor(load_digits().images[load_digits().target == label]).float()
    assert (known - x[0]).abs().amax((1, 2)).min() < 0.05
    with pytest.raises(BellaError, match="Digits comes with a package: leave out --folder"):
        open_data("digits", Preprocess(8), folder="here")
