import pytest
import torch
from set_files import write_cifar10, write_stl10

from bella.data import Preprocess, open_data
from bella.data.sets.stl10 import SHARED
from bella.errors import BellaError

PIXELS = Preprocess(96, mean=0.0, std=1.0)
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


def test_binary_files_hold_the_same_pictures(tmp_path):
    written = write_stl10(tmp_path / "stl10_binary", {"train": 20, "test": 10})
    parts = open_data("stl10", PIXELS, folder=tmp_path)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 10,
        "validation": 10,
        "test": 10,
    }
    pixels, labels = written["test"]
    assert parts["test"].labels == labels
    assert torch.equal(parts["test"][3][0], torch.tensor(pixels[3]).permute(2, 0, 1).float())
    some = open_data("stl10", PIXELS, folder=tmp_path, classes=["ship", "cat"])
    assert some["test"].classes == ("ship", "cat")
    assert some["test"].labels == [1, 0]


def test_stl10_is_the_shift_of_cifar10_by_the_classes_they_share(tmp_path):
    write_cifar10(tmp_path / "cifar10", each=20)
    write_stl10(tmp_path / "stl10", {"train": 10, "test": 20})
    parts = open_data("cifar10-stl10", PIXELS, folder=tmp_path)
    assert list(parts) == ["train", "validation", "test", "stl10"]
    assert {part.classes for part in parts.values()} == {SHARED}
    assert (len(SHARED), "frog" in SHARED) == (9, False)
    assert len(parts["test"]) == len(parts["stl10"]) == 18
    # STL-10's third class, car, is CIFAR-10's second, automobile; its eighth, monkey, is nowhere.
    names = [SHARED[label] for label in parts["stl10"].labels[:9]]
    assert names[:3] == ["airplane", "bird", "automobile"]
    assert names[3:] == ["cat", "deer", "dog", "horse", "ship", "truck"]


def test_partial_files_are_named(tmp_path):
    write_stl10(tmp_path, {"train": 4, "test": 2})
    with pytest.warns(UserWarning, match="4 train images and the published STL-10 5,000"):
        open_data("stl10", PIXELS, folder=tmp_path)
    path = tmp_path / "train_X.bin"
    path.write_bytes(path.read_bytes()[:-100])
    message = r"train_X.bin is damaged, or not whole \(110,492 bytes where 4 labels ask for 110,592"
    with pytest.raises(BellaError, match=message):
        open_data("stl10", PIXELS, folder=tmp_path)
    path.write_bytes(b"")
    with pytest.raises(BellaError, match=r"train_X.bin is damaged"):
        open_data("stl10", PIXELS, folder=tmp_path)
    (tmp_path / "test_y.bin").unlink()
    with pytest.raises(BellaError, match=r"test_y.bin missing. Get it: .*2,640,397,119 bytes"):
        open_data("stl10", PIXELS, folder=tmp_path)
