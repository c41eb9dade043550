import pickle
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from set_files import picture, planes, save_picture, write_cifar10

from bella import data
from bella.data import Augment, Preprocess, open_data
from bella.data.sets.cifar import CLASSES
from bella.errors import BellaError

PIXELS = Preprocess(32, mean=0.0, std=1.0)
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


@pytest.fixture
def batches(tmp_path):
    return tmp_path, write_cifar10(tmp_path / "cifar-10-batches-py")


def tensor(pixels):
    return torch.tensor(pixels).permute(2, 0, 1).float()


def test_python_batches_hold_the_same_pictures(batches):
    folder, written = batches
    augmented = Preprocess(32, 0.0, 1.0, augment=Augment())
    parts = open_data("cifar10", augmented, folder=folder)
    assert list(parts) == ["train", "validation", "test"]
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 90,
        "validation": 10,
        "test": 20,
    }
    assert parts["test"].classes == CLASSES
    pixels, labels = written["test"]
    assert parts["test"].labels == labels
    for index in (0, 19):
        x, y = parts["test"][index]
        assert torch.equal(x, tensor(pixels[index]))
        assert y == labels[index]
    pixels, labels = written["train"]
    every = [
        (image.tobytes(), y)
        for p in ("train", "validation")
        for image, y in zip(parts[p].images, parts[p].labels, strict=True)
    ]
    assert sorted(every) == sorted(zip((p.tobytes() for p in pixels), labels, strict=True))
    assert parts["train"].preprocess == augmented
    assert parts["validation"].preprocess == parts["test"].preprocess == PIXELS
    # The folder itself does as well, and another seed holds out others.
    again = open_data("cifar10", augmented, folder=folder / "cifar-10-batches-py", seed=1)
    assert again["test"].labels == parts["test"].labels
    held = [{image.tobytes() for image in some["validation"].images} for some in (parts, again)]
    assert held[0] != held[1]


def test_a_copy_with_other_numbers_is_told_of(batches):
    with pytest.warns(UserWarning, match="holds 100 train images and the published CIFAR-10 50,0"):
        open_data("cifar10", PIXELS, folder=batches[0])


def test_wrong_and_partial_copies_are_named(batches, tmp_path):
    folder, _ = batches
    root = folder / "cifar-10-batches-py"

    def refused(message):
        with pytest.raises(BellaError, match=message):
            open_data("cifar10", PIXELS, folder=folder)

    with pytest.raises(BellaError, match=r"give --folder. Get it: https.*170,498,071 bytes"):
        open_data("cifar10", PIXELS)
    whole = (root / "data_batch_3").read_bytes()
    (root / "data_batch_3").write_bytes(whole[: len(whole) // 2])
    refused(r"data_batch_3 cannot be read as a pickle of arrays")
    (root / "data_batch_3").write_bytes(pickle.dumps({"data": np.zeros((2, 9), np.uint8)}, 2))
    refused(r"data_batch_3 is damaged, or not whole .*Get it: https://www.cs.toronto.edu")
    short = {"data": planes(picture(0, 32, 32)[None]), "labels": [1, 2]}
    (root / "data_batch_3").write_bytes(pickle.dumps(short, 2))
    refused(r"labels of other number")
    short["labels"] = [10]
    (root / "data_batch_3").write_bytes(pickle.dumps(short, 2))
    refused(r"labels beyond its 10 classes")
    (root / "data_batch_3").unlink()
    refused(r"a part of CIFAR-10 \(python batches\): data_batch_3 missing. Get it")
    shutil.rmtree(root)
    (folder / "cifar-10-python.tar.gz").write_bytes(b"packed")
    refused(r"does not hold CIFAR-10 .*Unpack cifar-10-python.tar.gz first")


def test_parquet_as_the_hub_has_it(tmp_path):
    pixels = np.stack([picture(i, 32, 32) for i in range(40)])
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    for part, rows in (("train", range(30)), ("test", range(30, 40))):
        columns = {
            "img": [Image.fromarray(pixels[i]) for i in rows],
            "label": [i % 10 for i in rows],
        }
        some = datasets.Dataset.from_dict(columns, features=features)
        some.to_parquet(tmp_path / "plain_text" / f"{part}-00000-of-00001.parquet")
    parts = open_data("cifar10", PIXELS, folder=tmp_path)
    assert parts["test"].classes == CLASSES
    assert parts["test"].labels == list(range(10))
    assert torch.equal(parts["test"][7][0], tensor(pixels[37]))
    assert len(parts["train"]) + len(parts["validation"]) == 30
    (tmp_path / "plain_text" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BellaError, match="cannot be loaded by datasets"):
        open_data("cifar10", PIXELS, folder=tmp_path)


def test_folders_of_images(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for place, name in enumerate(CLASSES):
            for i in range(count):
                save_picture(tmp_path / part / name / f"{i}.png", 10 * place + i, 32)
    parts = open_data("cifar10", PIXELS, folder=tmp_path)
    assert parts["test"].labels == list(range(10))
    assert torch.equal(parts["test"][4][0], tensor(picture(40, 32, 32)))
    shutil.rmtree(tmp_path / "test" / "frog")
    with pytest.raises(BellaError, match=r"a part of CIFAR-10 \(folders\): test/frog/ missing"):
        open_data("cifar10", PIXELS, folder=tmp_path)


def test_cifar100_has_its_fine_classes(tmp_path):
    names = ["apple", "bear", "worm"]
    for part, count in (("train", 20), ("test", 6)):
        entries = {
            b"data": planes(np.stack([picture(i, 32, 32) for i in range(count)])),
            b"fine_labels": [i % 3 for i in range(count)],
            b"coarse_labels": [0] * count,
        }
        (tmp_path / part).write_bytes(pickle.dumps(entries, 2))
    meta = {b"fine_label_names": [n.encode() for n in names], b"coarse_label_names": [b"all"]}
    (tmp_path / "meta").write_bytes(pickle.dumps(meta, 2))
    parts = data.SETS["cifar100"].read(tmp_path, PIXELS, 0)
    assert parts["test"].classes == tuple(names)
    assert parts["test"].labels == [0, 1, 2, 0, 1, 2]
    assert (len(parts["train"]), len(parts["validation"])) == (17, 3)
