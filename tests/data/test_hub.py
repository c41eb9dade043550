"""Data of Hugging Face: copies on disk, and what `datasets` would load from the hub."""

import json

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from set_files import picture, save_picture

from bella.data import HubImages, LabelledTexts, Preprocess, open_data, open_hub
from bella.errors import BellaError
from bella.training.identity import fingerprint_data

PIXELS = Preprocess(8, mean=0.0, std=1.0)


def texts(count, start=0, names=("bad", "good")):
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    columns = {
        "text": [f"text {i}" for i in range(start, start + count)],
        "label": [i % len(names) for i in range(start, start + count)],
    }
    return Dataset.from_dict(columns, features=features)


def images(count, start=0):
    features = Features({"picture": datasets.Image(), "kind": ClassLabel(names=["odd", "even"])})
    columns = {
        "picture": [Image.fromarray(picture(i)) for i in range(start, start + count)],
        "kind": [i % 2 for i in range(start, start + count)],
    }
    return Dataset.from_dict(columns, features=features)


def test_a_copy_of_save_to_disk(tmp_path):
    DatasetDict(train=texts(40), test=texts(10, 40)).save_to_disk(tmp_path / "copy")
    parts = open_data(f"hf:{tmp_path / 'copy'}", PIXELS)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 32,
        "validation": 8,
        "test": 10,
    }
    assert all(isinstance(part, LabelledTexts) for part in parts.values())
    assert parts["test"][3] == ("text 43", 1)
    assert parts["train"].classes == ("bad", "good")
    every = {parts[name].texts[i] for name in ("train", "validation") for i in range(8)}
    assert every <= {f"text {i}" for i in range(40)}


def test_images_are_decoded_as_they_are_read(tmp_path):
    DatasetDict(train=images(20), valid=images(4, 20), test=images(4, 24)).save_to_disk(tmp_path)
    parts = open_data(f"hf:{tmp_path}", PIXELS)
    assert all(isinstance(part, HubImages) for part in parts.values())
    assert [len(part) for part in parts.values()] == [20, 4, 4]
    x, y = parts["validation"][1]
    assert torch.equal(x, torch.tensor(picture(21)).permute(2, 0, 1).float())
    assert (y, parts["validation"].classes) == (1, ("odd", "even"))
    some = parts["test"].select([3, 0])
    assert np.array_equal(np.asarray(some.image(0)), picture(27))
    assert some.fixed
    again = open_data(f"hf:{tmp_path}", PIXELS)
    assert fingerprint_data(parts["test"]) == fingerprint_data(again["test"])
    assert fingerprint_data(parts["test"]) != fingerprint_data(some)


def test_an_image_that_cannot_be_read_is_named_or_skipped(tmp_path):
    features = Features({"image": datasets.Image(), "label": Value("int64")})
    rows = [{"bytes": b"no image", "path": "broken.png"}]
    for i in range(12):
        path = save_picture(tmp_path / f"{i}.png", i)
        rows.append({"bytes": path.read_bytes(), "path": path.name})
    columns = {"image": rows, "label": [7] + [3, 7] * 6}
    Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "copy")
    parts = open_hub(str(tmp_path / "copy"), PIXELS)
    assert parts["train"].classes == ("3", "7")
    with pytest.raises(BellaError, match=r"broken.png cannot be read as an image"):
        [part[i] for part in parts.values() for i in range(len(part))]
    with pytest.warns(UserWarning, match=r"1 of 13 images cannot be read and are skipped"):
        parts = open_hub(str(tmp_path / "copy"), PIXELS, on_bad_image="skip")
    assert sum(map(len, parts.values())) == 12


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_folders_of_files_as_datasets_reads_them(tmp_path, kind):
    for part, some in (("train", texts(30)), ("test", texts(6, 30))):
        some = some.map(
            lambda row: {"label": ("bad", "good")[row["label"]]},
            features=Features({"text": Value("string"), "label": Value("string")}),
        )
        if kind == "parquet":
            some.to_parquet(tmp_path / f"{part}.parquet")
        elif kind == "csv":
            some.to_csv(tmp_path / f"{part}.csv")
        else:
            (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
    parts = open_data(f"hf:{tmp_path}", PIXELS)
    assert parts["test"].classes == ("bad", "good")
    assert parts["test"][1] == ("text 31", 1)
    assert len(parts["train"]) + len(parts["validation"]) == 30


def test_a_name_on_the_hub_is_what_datasets_loads(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return DatasetDict(train=texts(20), dev=texts(4), unsupervised=texts(4), far=texts(6))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    chosen = {"config": "plain", "shifts": ["far"]}
    with pytest.warns(UserWarning, match=r"the parts unsupervised are left out"):
        parts = open_data("hf:some/data", PIXELS, options=chosen)
    assert asked == [(("some/data", "plain"), {})]
    assert list(parts) == ["train", "validation", "test", "far"]
    assert len(parts["validation"]) == 4
    with pytest.raises(BellaError, match="some/data has no part 'near'"):
        open_data("hf:some/data", PIXELS, options={"shifts": ["near"]})


def test_what_datasets_cannot_load_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(BellaError, match="cannot be read as what save_to_disk leaves"):
        open_data(f"hf:{tmp_path}", PIXELS)

    def load_dataset(*_, **__):
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = r"some/data cannot be loaded by datasets \(ConnectionError: no route to the hub\): "
    with pytest.raises(BellaError, match=message):
        open_data("hf:some/data", PIXELS)


def loads(monkeypatch, **parts):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: DatasetDict(**parts))


def test_columns_that_cannot_be_told_are_asked_for(monkeypatch):
    columns = {"one": ["a", "b"] * 6, "two": ["c", "d"] * 6, "label": [0, 1] * 6}
    loads(monkeypatch, train=Dataset.from_dict(columns))
    with pytest.raises(BellaError, match=r"2 text columns \(one, two\): say which by text=NAME"):
        open_hub("pair", PIXELS)
    assert open_hub("pair", PIXELS, text="two")["train"].texts[0] in "cd"
    with pytest.raises(BellaError, match="no text column 'three': its are"):
        open_hub("pair", PIXELS, text="three")
    with pytest.raises(BellaError, match="no column 'answer'"):
        open_hub("pair", PIXELS, label="answer")
    labels = open_hub("pair", PIXELS, text="two", label="one")["train"]
    assert labels.classes == ("a", "b")
    assert all((text == "c") == (label == 0) for text, label in (labels[i] for i in range(4)))
    loads(monkeypatch, train=Dataset.from_dict({"text": ["a"] * 4, "score": [0.5, 0.1] * 2}))
    with pytest.raises(BellaError, match="Which column of pair holds the labels cannot be told"):
        open_hub("pair", PIXELS)
    with pytest.raises(BellaError, match=r"'score' of pair holds .*float.* a label is a name"):
        open_hub("pair", PIXELS, label="score")


def test_hidden_and_unknown_labels(monkeypatch):
    hidden = Dataset.from_dict({"text": ["x"] * 3, "label": [-1] * 3})
    hidden = hidden.cast_column("label", ClassLabel(names=["bad", "good"]))
    loads(monkeypatch, train=texts(30), test=hidden)
    with pytest.warns(UserWarning, match="the part test has no labels and is left out"):
        parts = open_hub("hidden", PIXELS)
    assert set(parts["test"].texts) <= {f"text {i}" for i in range(30)}
    columns = {"text": ["x"] * 4, "label": ["a", "b", "a", "c"]}
    loads(
        monkeypatch,
        train=Dataset.from_dict({"text": ["x"] * 12, "label": ["a", "b"] * 6}),
        test=Dataset.from_dict(columns),
    )
    with pytest.raises(BellaError, match="has the label 'c', which train does not know"):
        open_hub("other", PIXELS)
    loads(monkeypatch, test=texts(4))
    with pytest.raises(BellaError, match="has no part train: its parts are test"):
        open_hub("other", PIXELS)
