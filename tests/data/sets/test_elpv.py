import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from bella import data
from bella.data.images import Augment, Preprocess
from bella.errors import BellaError, MissingExtraError

PIXELS = Preprocess(8, mean=0.0, std=1.0)


@pytest.fixture(scope="module")
def cells():
    return data.elpv(Preprocess(32, 127, 128, augment=Augment()), seed=0)


def test_elpv_has_the_published_numbers_of_cells(cells):
    assert {name: len(part) for name, part in cells.items()} == {
        "train": 541,
        "validation": 135,
        "test": 225,
        "doubt": 173,
        "poly": 1322,
        "poly_doubt": 228,
    }
    every = [path for part in cells.values() for path in part.paths]
    assert len(set(every)) == 2624


def test_elpv_labels_are_the_likelier_class(cells):
    for name, part in cells.items():
        assert part.classes == ("functional", "defective")
        assert part.labels == [round(p) for p in part.probability]
        assert len(part.paths) == len(part.labels)
        doubtful = {0.0 < p < 1.0 for p in part.probability}
        assert doubtful == {"doubt" in name}
    shares = [np.mean(cells[name].labels) for name in ("train", "validation", "test")]
    assert np.ptp(shares) < 0.005


def test_elpv_split_is_the_same_on_every_machine(cells):
    assert [path.name for path in cells["test"].paths[:4]] == [
        "cell0002.png",
        "cell0003.png",
        "cell0004.png",
        "cell0007.png",
    ]
    assert data.elpv(PIXELS, seed=0)["train"].paths == cells["train"].paths
    assert data.elpv(PIXELS, seed=1)["train"].paths != cells["train"].paths


def test_elpv_cells_are_pictures_and_only_train_is_augmented(cells):
    x, y = cells["poly"][0]
    assert x.shape == (3, 32, 32)
    assert y == cells["poly"].labels[0]
    assert x.std() > 0
    assert -127 / 128 <= x.min() <= x.max() <= 1
    assert {name for name, part in cells.items() if part.preprocess.augment} == {"train"}


def test_elpv_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    with pytest.raises(MissingExtraError, match=r"not installed\. Get it: .*elpv-dataset"):
        data.elpv(PIXELS)


@pytest.mark.filterwarnings("ignore:.*the published")
def test_elpv_from_a_copy_of_its_folder(cells, tmp_path):
    (tmp_path / "images").mkdir()
    lines = []
    for part in ("test", "doubt", "poly", "poly_doubt"):
        for path, probability in zip(cells[part].paths[:8], cells[part].probability, strict=False):
            shutil.copy(path, tmp_path / "images")
            kind = "poly" if "poly" in part else "mono"
            lines.append(f"images/{path.name}  {probability}  {kind}\n")
    (tmp_path / "labels.csv").write_text("".join(lines))
    parts = data.elpv(PIXELS, folder=tmp_path)
    assert {name: len(part) for name, part in parts.items()}["poly"] == 8
    assert {Path(path).parent.parent for path in parts["doubt"].paths} == {tmp_path}
    (tmp_path / "labels.csv").write_text("images/cell0001.png 1.0\n")
    with pytest.raises(BellaError, match=r"labels\.csv is damaged"):
        data.elpv(PIXELS, folder=tmp_path)
