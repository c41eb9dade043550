import gzip
import importlib
import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bella import data
from bella.data.images import Preprocess
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)
# The function of the same name hides the module from the package's attributes.
fashion_module = importlib.import_module("bella.data.sets.fashion_mnist")
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


def test_fashion_mnist_from_idx_files(fashion_folder):
    parts = data.fashion_mnist(Preprocess(28, 0.0, 1.0), fashion_folder)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 360,
        "validation": 40,
        "test": 100,
        "corrupted": 100,
    }
    images = fashion_module.read_idx(fashion_folder / "t10k-images-idx3-ubyte.gz")
    x, y = parts["test"][13]
    assert (y, parts["test"].classes[y]) == (3, "Dress")
    assert torch.equal(x, torch.tensor(images[13]).float().expand(3, 28, 28))


def test_fashion_mnist_limit_keeps_equal_shares_of_each_class(fashion_folder):
    parts = data.fashion_mnist(PIXELS, fashion_folder, limit=50)
    assert np.bincount(parts["train"].labels).tolist() == [5] * 10
    assert len(parts["validation"]) == 40
    with pytest.raises(BellaError, match="limit=0 must be a positive number"):
        data.fashion_mnist(PIXELS, fashion_folder, limit=0)


def test_corrupted_is_test_with_fixed_noise(fashion_folder):
    first = data.fashion_mnist(Preprocess(28, 0.0, 1.0), fashion_folder, seed=0)
    second = data.fashion_mnist(Preprocess(28, 0.0, 1.0), fashion_folder, seed=1)
    noisy = np.stack(first["corrupted"].images).astype(float)
    clean = np.stack(first["test"].images).astype(float)
    assert first["corrupted"].labels == first["test"].labels
    assert np.array_equal(noisy, np.stack(second["corrupted"].images))
    middle = (clean > 120) & (clean < 135)  # where clipping at 0 and 255 is symmetric
    assert abs((noisy - clean)[middle].mean()) < 3
    # The variance of a normal variable of deviation s that is clipped at -a and a.
    s, a = 0.38 * 255, 127.5
    density = math.exp(-((a / s) ** 2) / 2) / math.sqrt(2 * math.pi)
    tails = math.erfc(a / s / math.sqrt(2))
    variance = s**2 * (1 - tails - 2 * a / s * density) + a**2 * tails
    assert (noisy - clean)[middle].std() == pytest.approx(math.sqrt(variance), rel=0.03)


def test_bad_fashion_mnist_files_are_named(fashion_folder):
    path = fashion_folder / "t10k-labels-idx1-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    for content, message in [
        (b"not gzip", "labels-idx1-ubyte.gz cannot be read"),
        (path.read_bytes()[:-20], "labels-idx1-ubyte.gz cannot be read"),
        (gzip.compress(b""), "labels-idx1-ubyte.gz cannot be read"),
        (gzip.compress(whole[:-1]), "not an idx file of bytes"),
    ]:
        path.write_bytes(content)
        with pytest.raises(BellaError, match=message):
            data.fashion_mnist(PIXELS, fashion_folder)
    path.write_bytes(gzip.compress(b"\0\0\x08\1\0\0\0\2\3\4"))
    with pytest.raises(BellaError, match=r"images .100, 28, 28. and labels .2,. of ten classes"):
        data.fashion_mnist(PIXELS, fashion_folder)
    path.unlink()
    with pytest.raises(BellaError, match=r"a part of Fashion-MNIST .* t10k-labels-.* missing"):
        data.fashion_mnist(PIXELS, fashion_folder)
    with pytest.raises(BellaError, match=r"There is no folder .*absent"):
        data.fashion_mnist(PIXELS, fashion_folder / "absent")


def test_fashion_mnist_from_the_hub_where_there_are_no_files(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_module, "FOLDER", tmp_path / "absent")
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    columns = {"image": [Image.fromarray(i) for i in images], "label": [0, 1] * 10}
    part = datasets.Dataset.from_dict(
        columns,
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=fashion_module.CLASSES)}
        ),
    )
    asked = []

    def load_dataset(name):
        asked.append(name)
        if len(asked) > 1:
            raise ConnectionError("no route")
        return datasets.DatasetDict(train=part, test=part)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    parts = data.fashion_mnist(PIXELS)
    assert np.array_equal(np.stack(parts["test"].images), images)
    assert parts["test"].labels == [0, 1] * 10
    with pytest.raises(BellaError, match="`apt install dataset-fashion-mnist`"):
        data.fashion_mnist(PIXELS)
    assert asked == ["zalando-datasets/fashion_mnist"] * 2


def test_fashion_mnist_unpacked(fashion_folder, tmp_path):
    for path in fashion_folder.iterdir():
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    first, second = (data.fashion_mnist(PIXELS, folder) for folder in (fashion_folder, tmp_path))
    for name, part in first.items():
        assert part.labels == second[name].labels
        assert np.array_equal(np.stack(part.images), np.stack(second[name].images))
