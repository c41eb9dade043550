"""Folders that look like the parts of a data set are never taken for classes in silence."""

from __future__ import annotations

import pytest
from PIL import Image

from bella.data import Preprocess, splits
from bella.errors import BellaError


def pictures(folder, count=6):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / f"{number}.png")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN",)])
def test_parts_of_other_names_are_refused(tmp_path, names):
    for name in names:
        for label in ("a", "b"):
            pictures(tmp_path / name / label)
    with pytest.raises(BellaError, match="look like the parts of a data set: call them train"):
        splits(tmp_path, Preprocess(8))


def test_parts_without_classes_are_refused(tmp_path):
    for name in ("train", "test"):
        pictures(tmp_path / name)
    with pytest.raises(BellaError, match="look like the parts"):
        splits(tmp_path, Preprocess(8))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        pictures(tmp_path / name, 12)
    assert splits(tmp_path, Preprocess(8))["train"].classes == ("bus", "train")
