import numpy as np
import pytest
from scipy.io import savemat
from set_files import save_picture, write_csv

from bella.data import Preprocess, open_data
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)
WNIDS = ("n01440764", "n01443537", "n02102040")
TRUTH = (2, 0, 1, 1, 0)
"""The class of each validation image."""
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


def write_train(root):
    for place, wnid in enumerate(WNIDS):
        for i in range(4):
            save_picture(root / "train" / wnid / f"{wnid}_{i}.JPEG", 10 * place + i)


def write_val(root):
    for number in range(1, len(TRUTH) + 1):
        save_picture(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number)


def write_devkit(root):
    """The development kit numbers synsets in an order of its own."""
    place = root / "ILSVRC2012_devkit_t12" / "data"
    place.mkdir(parents=True)
    numbers = {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2}
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = [(number, wnid, "a fish") for wnid, number in numbers.items()]
    savemat(place / "meta.mat", {"synsets": np.array(rows, dtype=kind)[:, None]})
    lines = [f"{numbers[WNIDS[label]]}\n" for label in TRUTH]
    (place / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))
    return place


def check(folder):
    parts = open_data("imagenet", PIXELS, folder=folder)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 9,
        "validation": 3,
        "test": 5,
    }
    assert parts["test"].classes == WNIDS
    assert parts["test"][1][0].shape == (3, 8, 8)
    return [
        (path.name, label)
        for path, label in zip(parts["test"].paths, parts["test"].labels, strict=True)
    ]


def test_folders_of_both_parts(tmp_path):
    write_train(tmp_path)
    for number, label in enumerate(TRUTH):
        save_picture(tmp_path / "val" / WNIDS[label] / f"val_{number}.JPEG", number)
    assert sorted(check(tmp_path)) == [(f"val_{n}.JPEG", label) for n, label in enumerate(TRUTH)]


def test_the_challenges_own_layout(tmp_path):
    write_train(tmp_path)
    write_val(tmp_path)
    place = write_devkit(tmp_path)
    assert [label for _, label in check(tmp_path)] == list(TRUTH)
    (place / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
    with pytest.raises(BellaError, match=r"val_00000003.JPEG has no label in the list of answers"):
        check(tmp_path)
    (place / "meta.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(BellaError, match=r"devkit_t12 is damaged, or not whole .*Get it: "):
        check(tmp_path)


def test_kaggles_layout(tmp_path):
    write_train(tmp_path / "Data" / "CLS-LOC")
    write_val(tmp_path / "Data" / "CLS-LOC")
    rows = [
        {
            "ImageId": f"ILSVRC2012_val_{number:08d}",
            "PredictionString": f"{WNIDS[label]} 85 1 499 272 {WNIDS[label]} 1 1 9 9",
        }
        for number, label in enumerate(TRUTH, 1)
    ]
    write_csv(tmp_path / "LOC_val_solution.csv", rows[::-1])
    assert [label for _, label in check(tmp_path)] == list(TRUTH)
    rows[2]["PredictionString"] = "n09999999 1 1 2 2"
    write_csv(tmp_path / "LOC_val_solution.csv", rows)
    with pytest.raises(BellaError, match=r"val_00000003.JPEG is of n09999999, train knows"):
        check(tmp_path)


def test_a_partial_copy_is_told_of(tmp_path):
    write_train(tmp_path)
    with pytest.raises(BellaError, match=r"a part of ImageNet .*val/ missing.*138 GB"):
        check(tmp_path)
    save_picture(tmp_path / "val" / WNIDS[0] / "0.JPEG", 0)
    with pytest.warns(UserWarning, match="12 train images and the published ImageNet .* 1,281,167"):
        open_data("imagenet", PIXELS, folder=tmp_path)
