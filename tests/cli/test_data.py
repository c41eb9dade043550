"""``bella data``, and data sets by name in ``bella fit`` and ``bella compare``."""

import json
import sys

import pytest
import yaml
from own_images import write_images, write_network
from set_files import write_stl10

from bella.cli.app import main
from bella.data import SETS


@pytest.fixture
def bella(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        """Exit status, what was printed, what was complained of."""
        monkeypatch.setattr(sys, "argv", ["bella", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


def test_all_sets_are_listed_and_each_says_what_it_is(bella):
    status, out, _ = bella("data")
    assert status == 0
    assert all(name in out for name in SETS)
    _, out, _ = bella("data", "--json")
    assert [one["name"] for one in json.loads(out)] == list(SETS)
    _, out, _ = bella("data", "domainnet")
    for word in ("Get it: http://ai.bu.edu/M3SDA", "--data-option domain=", "_train.txt", "Peng"):
        assert word in out
    _, out, _ = bella("data", "camelyon17", "--json")
    found = json.loads(out)
    assert found["options"] == {"hospitals": [0, 3, 4]}
    assert found["forms"] == {"WILDS": ["metadata.csv", "patches/"]}


def test_what_is_there_is_counted(bella, tmp_path):
    status, out, _ = bella("data", "digits", "--check", "--left-out", "0,9")
    assert status == 0
    assert "digits (image), 8 classes: 1, 2, 3, 4, 5, 6, 7, 8" in out
    assert "test: 361, 44 to 46 of a class" in out
    assert "left_out: 89, 89 of no class" in out
    write_stl10(tmp_path, {"train": 10, "test": 10})
    status, out, _ = bella("data", "stl10", "--folder", tmp_path)
    assert status == 0
    assert "Note: " in out
    assert "10 train images and the published STL-10 5,000" in out
    _, out, _ = bella("data", write_images(tmp_path / "sky"), "--every", "--json")
    found = json.loads(out)
    assert found["classes"] == ["day", "night"]
    assert sum(part["examples"] for part in found["parts"].values()) == 24
    (tmp_path / "test_y.bin").unlink()
    status, out, err = bella("data", "stl10", "--folder", tmp_path, "--check")
    assert (status, out) == (2, "")
    assert err.startswith(f"bella: {tmp_path} holds a part of STL-10 (binary): test_y.bin missing.")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "cifra10"], "'cifra10' is neither a data set nor"),
        (["data", "cifar10", "--check"], "give --folder. Get it: https://www.cs.toronto.edu"),
        (["data", "digits", "--check", "--data-option", "domain"], "write NAME=VALUE"),
        (["fit", "--data", "wordnet", "--folder", "."], "does not hold WordNet's definitions"),
        (["fit", "--data", "digits", "--classes", "3,ten"], "no class 'ten'"),
        (["compare", "--data", "fashion-mlp", "--folder", "here"], "finds its data by itself"),
        (["compare", "--data", "cifar10"], "CIFAR-10 is read from a folder"),
    ],
)
def test_bad_input_is_one_sentence(bella, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = bella(*arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*the published")
def test_fit_and_compare_take_a_set_by_its_name(bella, tmp_path):
    network = f"hf:{write_network(tmp_path / 'vit')}"
    write_stl10(tmp_path / "stl10", {"train": 60, "test": 20})
    chosen = ["--data", "stl10", "--folder", tmp_path / "stl10", "--left-out", "car,monkey"]
    few = ["--network", network, "--epochs", "1", "--quiet", "--json"]
    out = tmp_path / "run"
    status, printed, _ = bella("fit", *chosen, *few, "--particles", "2", "--out", out)
    assert status == 0
    found = json.loads(printed)
    assert {"accuracy", "auroc_left_out_entropy", "mi_left_out"} <= set(found)
    assert "accuracy_left_out" not in found
    model = json.loads((out / "model.json").read_text())
    assert len(model["classes"]) == 8
    assert not {"car", "monkey"} & set(model["classes"])
    asked = yaml.safe_load((out / "config.yaml").read_text())
    assert asked["data"] == "stl10"
    assert asked["left_out"] == ["car", "monkey"]
    # The configuration alone says it all, from any folder.
    status, again, _ = bella("fit", "--config", out / "config.yaml", "--out", out, "--json")
    assert (status, json.loads(again)) == (0, found)
    status, _, err = bella("fit", "--config", out / "config.yaml", "--limit", "16", "--out", out)
    assert status == 2
    assert "holds another run (training data" in err

    folder = tmp_path / "table"
    more = ["--methods", "probe", "--seeds", "1", "--out", folder]
    status, printed, _ = bella("compare", *chosen, *few, *more)
    results = json.loads(printed)
    assert (status, results["task"], results["shifts"]) == (0, "stl10", ["left_out"])
    noticed = results["methods"]["probe"]["parts"]["left_out"]
    assert "auroc_entropy" in noticed
    assert not {"accuracy", "nll"} & set(noticed)  # of no class: nothing is right there
    assert (folder / "report.md").exists()


def test_texts_are_refused_where_images_are_trained_on(bella, tmp_path):
    rows = "".join(f'{{"text": "t{i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(20))
    (tmp_path / "train.jsonl").write_text(rows)
    status, out, _ = bella("data", f"hf:{tmp_path}", "--json")
    assert (status, json.loads(out)["kind"]) == (0, "text")
    status, _, err = bella("fit", "--data", f"hf:{tmp_path}", "--quiet")
    assert status == 2
    assert "holds examples of the kind 'text', and images are trained on here" in err
