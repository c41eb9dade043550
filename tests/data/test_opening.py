"""Any data by one word, and the choice of classes that all share."""

import numpy as np
import pytest
from own_images import write_images

from bella.data import SETS, Preprocess, check_data, open_data, shifts_of
from bella.data.opening import of_chosen_classes
from bella.data.written import LabelledTexts
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)


def test_every_set_says_what_it_is_and_where_to_get_it():
    for name, dataset in SETS.items():
        assert dataset.name == name
        assert dataset.kind in ("image", "text", "question", "image+question")
        assert list(dataset.parts)[:3] == ["train", "validation", "test"]
        assert dataset.source
        assert dataset.forms or "comes with" in dataset.place or "come with" in dataset.place
        assert not dataset.place.endswith(".")
        assert not {"folder", "preprocess", "seed", "classes", "left_out", "limit"} & set(
            dataset.options
        )


def test_own_folders_are_opened_as_ever(tmp_path):
    parts = open_data(write_images(tmp_path / "sky"), PIXELS, seed=1)
    assert list(parts) == ["train", "validation", "test"]
    assert parts["train"].classes == ("day", "night")
    assert shifts_of(parts) == []


def test_a_name_that_is_a_set_and_a_folder_is_asked_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "digits")
    with pytest.raises(BellaError, match=r"digits is a data set's name, and there is a folder"):
        open_data("digits", PIXELS)
    assert open_data("./digits", PIXELS)["train"].classes == ("day", "night")


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        ("digit", {}, "'digit' is neither a data set nor a folder .* near are 'digits'"),
        ("./digit", {}, "digit is neither a folder nor a CSV file"),
        ("digits", {"options": {"domain": "x"}}, "Digits has no option 'domain': its own are none"),
        ("digits", {"limit": 0}, "limit=0 must be a positive number"),
        ("digits", {"classes": ["0", "ten"]}, "no class 'ten' among the 10"),
        ("digits", {"classes": ["0"]}, "1 classes are left: keep two at least"),
        ("digits", {"classes": ["0", "1", "0"]}, "hold one twice"),
        ("digits", {"classes": ["0", "1"], "left_out": ["1"]}, "'1' is chosen and left out"),
        ("hf:some", {"options": {"columns": "x"}}, "hf:some has no option 'columns'"),
        ("here.csv", {"options": {"a": 1}}, "here.csv is your own data, which have no option 'a'"),
        ("./here", {"folder": "there"}, "--folder says where a data set by name lies"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(data, how, message):
    with pytest.raises(BellaError, match=message):
        open_data(data, PIXELS, **how)


def test_classes_are_chosen_and_left_out_the_same_for_all_parts():
    whole = open_data("digits", PIXELS)
    parts = open_data("digits", PIXELS, classes=["7", "1", "4"], left_out=["0", "9"], limit=30)
    assert list(parts) == ["train", "validation", "test", "left_out"]
    assert {part.classes for part in parts.values()} == {("7", "1", "4")}
    assert np.bincount(parts["train"].labels).tolist() == [10, 10, 10]
    counts = [whole["test"].labels.count(digit) for digit in (7, 1, 4)]
    assert np.bincount(parts["test"].labels).tolist() == counts
    assert parts["left_out"].labels == [-1] * sum(d in (0, 9) for d in whole["test"].labels)
    left = open_data("digits", PIXELS, left_out=["0"])
    assert left["train"].classes == tuple("123456789")
    assert shifts_of(left) == ["left_out"]


def test_parts_of_no_class_stay_so_and_empty_parts_are_refused():
    known = LabelledTexts("abcabc", [0, 1, 2] * 2, ["x", "y", "z"])
    foreign = LabelledTexts("d", [-1], ["x", "y", "z"])
    parts = {"train": known, "validation": known, "test": known, "far": foreign}
    found = of_chosen_classes(parts, ["z", "x"], [])
    assert (found["far"].classes, found["far"].labels) == (("z", "x"), [-1])
    assert found["test"].texts == ["a", "c", "a", "c"]
    assert found["test"].labels == [1, 0, 1, 0]
    with pytest.raises(BellaError, match="The part near has no example of these classes"):
        of_chosen_classes(parts | {"near": known.select([1])}, ["z", "x"], [])


def test_checking_counts_and_reads(tmp_path):
    found = check_data("digits", classes=["3", "8"])
    assert (found["kind"], found["classes"], found["notes"]) == ("image", ["3", "8"], [])
    whole = open_data("digits", PIXELS)["test"].labels
    assert found["parts"]["test"] == {
        "examples": whole.count(3) + whole.count(8),
        "of no class": 0,
        "classes": {"3": whole.count(3), "8": whole.count(8)},
    }
    root = write_images(tmp_path / "sky")
    assert check_data(str(root), every=True)["parts"]["train"]["classes"] == {"day": 7, "night": 7}
    for path in root.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(BellaError, match=r"cannot be read as an image"):
        check_data(str(root))
