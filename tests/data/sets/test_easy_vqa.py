import json
import sys

import pytest
from set_files import save_picture

from bella.data import Preprocess, open_data
from bella.errors import BellaError, MissingExtraError

PIXELS = Preprocess(8, mean=0.0, std=1.0)
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


@pytest.fixture
def folder(tmp_path):
    """The folder ``data`` of the package, with 10 and 2 images."""
    for part, count in (("train", 10), ("test", 2)):
        rows = []
        for image in range(count):
            save_picture(tmp_path / part / "images" / f"{image}.png", image)
            rows += [
                ["is it red?", "yes" if image % 2 else "no", image],
                ["what?", "circle", image],
            ]
        (tmp_path / part / "questions.json").write_text(json.dumps(rows))
    (tmp_path / "answers.txt").write_text("circle\nyes\nno\n")
    return tmp_path


def test_questions_about_shapes(folder):
    parts = open_data("easy-vqa", PIXELS, folder=folder)
    assert parts["train"].classes == ("circle", "no", "yes")
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 18,
        "validation": 2,
        "test": 4,
    }
    assert not set(parts["train"].paths) & set(parts["validation"].paths)
    (x, question), label = parts["test"][2]
    assert (x.shape, question, label) == ((3, 8, 8), "is it red?", 2)
    assert parts["test"].answers[3] == ("circle",)


def test_wrong_files_and_a_missing_package_are_named(folder, monkeypatch):
    (folder / "answers.txt").write_text("circle\nyes\n")
    with pytest.raises(BellaError, match=r"train/questions.json is damaged, or not whole"):
        open_data("easy-vqa", PIXELS, folder=folder)
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(MissingExtraError, match="the package easy_vqa, which is not installed"):
        open_data("easy-vqa", PIXELS)
