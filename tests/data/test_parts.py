"""Folders that look like the parts of a data set are never taken for classes in silence."""

from __future__ import annotations

import pytest
from PIL import Image

from bella.data import Preprocess, open_images, splits
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


def listed(tmp_path, parts, column="split"):
    lines = [f"path,label,{column}"]
    for number, part in enumerate(parts):
        name = f"{number}.png"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name)
        lines.append(f"{name},{'ab'[number % 2]},{part}")
    path = tmp_path / "images.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("column", ["split", "Part", "subset"])
def test_a_column_of_a_csv_says_which_part_a_line_belongs_to(tmp_path, column):
    path = listed(tmp_path, ["train"] * 8 + ["VAL"] * 2 + ["test"] * 4, column)
    parts = splits(path, Preprocess(8))
    assert {name: [p.stem for p in part.paths] for name, part in parts.items()} == {
        "train": [str(i) for i in range(8)],
        "validation": ["8", "9"],
        "test": ["10", "11", "12", "13"],
    }
    with pytest.warns(UserWarning, match="all of its images are taken"):
        assert len(open_images(path, Preprocess(8))) == 14


def test_parts_that_a_csv_does_not_name_are_split_off_train(tmp_path):
    parts = splits(listed(tmp_path, ["train"] * 20 + ["test"] * 4), Preprocess(8))
    assert len(parts["test"]) == 4
    assert len(parts["train"]) + len(parts["validation"]) == 20
    assert len(parts["validation"]) > 0


@pytest.mark.parametrize(
    ("parts", "said"),
    [(["train", "holdout"] * 4, "train, val or test"), (["test"] * 8, "no line of train")],
)
def test_parts_that_nobody_knows_are_refused(tmp_path, parts, said):
    with pytest.raises(BellaError, match=said):
        splits(listed(tmp_path, parts), Preprocess(8))
