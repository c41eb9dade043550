"""The command: images in, files and figures out, and one sentence for each mistake."""

import csv
import inspect
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from own_images import CLASSES, write_images, write_network, write_table
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import bella
from bella.cli import main
from bella.cli.app import app, notes
from bella.cli.fit import fit as fit_command
from bella.data import ImageList
from bella.experiments.methods import METHODS
from bella.files import read_sealed_json, write_sealed_json
from bella.models import open_network
from bella.recipes import KINDS as KINDS_OF_POSTERIORS
from bella.runs import RunConfig, TextConfig, complete, open_run
from bella.runs.vqa.config import VqaConfig

FILES = {
    "checkpoint.safetensors",
    "config.yaml",
    "curves.png",
    "figures.json",
    "history.csv",
    "model.json",
    "posterior.json",
    "posterior.safetensors",
    "probes.safetensors",
    "run.json",
    "trace.csv",
}
COMMANDS = (
    *("demo", "fit", "evaluate", "predict", "compare", "report", "export", "cost"),
    *("runs", "cite"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, a table of them, two networks, and a run on the first."""
    root = tmp_path_factory.mktemp("own")
    write_table(root / "table.csv", write_images(root / "images"))
    write_network(root / "network", seed=0)
    write_network(root / "other", seed=1)
    fitted = CliRunner().invoke(app, fit_arguments(root, root / "run", "--json"))
    assert fitted.exit_code == 0, fitted.stderr
    (root / "printed.json").write_text(fitted.stdout)
    return root


def fit_arguments(root, out, *more, data="images", network="network"):
    """A short run; what is given later goes over it."""
    options = {
        "--data": root / data,
        "--network": f"hf:{root / network}",
        "--out": out,
        "--particles": 3,
        "--rank": 2,
        "--epochs": 4,
        "--learning-rate": 0.03,
        "--batch-size": 8,
    }
    return ["fit", *(str(x) for pair in options.items() for x in pair), *map(str, more)]


def succeed(*arguments):
    """Standard output of a command that has to work."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(monkeypatch, capsys, *arguments):
    """The sentence with which the whole command ends at bad input."""
    monkeypatch.setattr(sys, "argv", ["bella", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("bella: ")]
    assert err.rstrip().endswith(sentence)
    return sentence


def shell(*arguments, **environment):
    """``python -m bella`` in a process of its own."""
    return python("-m", "bella", *arguments, **environment)


def python(*arguments, **environment):
    """A process of its own."""
    source = str(Path(bella.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


def hidden(folder):
    return [path.name for path in folder.rglob(".*")] if folder.exists() else []


# ---------------------------------------------------------------- fit


def test_fit_fills_the_run_folder(place):
    run = place / "run"
    assert {path.name for path in run.iterdir()} == FILES
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["particles"] == 3
    assert config["data"] == str(place / "images")
    assert json.loads((run / "model.json").read_text())["classes"] == list(CLASSES)
    record = json.loads((run / "run.json").read_text())
    rows = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in record["history"]]
    assert record["versions"]["torch"] == torch.__version__
    with Image.open(run / "curves.png") as picture:
        assert min(picture.size) > 100
    assert len(load_file(run / "posterior.safetensors")) > 0
    settings = json.loads((run / "posterior.json").read_text())["settings"]
    assert (settings["particles"], settings["rank"]) == (3, 2)


def test_fit_tells_day_from_night_and_prints_the_figures_of_the_file(place):
    figures = json.loads((place / "run" / "figures.json").read_text())
    assert json.loads((place / "printed.json").read_text()) == figures
    assert figures["accuracy"] == 1.0
    assert figures["nll"] < math.log(2) / 2  # half of what guessing costs


def test_fit_again_gives_the_same_figures_and_fresh_begins_anew(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    before = (run / "figures.json").read_text()
    trained = (run / "checkpoint.safetensors").stat().st_mtime_ns
    assert json.loads(succeed(*fit_arguments(place, run, "--json"))) == json.loads(before)
    assert (run / "checkpoint.safetensors").stat().st_mtime_ns == trained  # no epoch was run again
    fresh = succeed(*fit_arguments(place, run, "--json", "--fresh", "--epochs", 1))
    assert json.loads(fresh)["nll"] != json.loads(before)["nll"]
    assert (run / "checkpoint.safetensors").stat().st_mtime_ns > trained
    assert len(json.loads((run / "run.json").read_text())["history"]) == 1


def test_an_interrupted_fit_goes_on_to_the_same_bits(place, tmp_path, monkeypatch, capsys):
    from bella.training.saving import Saving

    run = tmp_path / "run"
    save = Saving.save

    def stop(self, epoch, **more):
        save(self, epoch, **more)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Saving, "save", stop)
    monkeypatch.setattr(sys, "argv", ["bella", *fit_arguments(place, run)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "bella: stopped after 2 epochs: the same command continues a run" in said
    assert f"bella predict {run} IMAGES" in said
    out = tmp_path / "p.csv"
    assert "least certain" in succeed("predict", run, place / "images", "--out", out)
    monkeypatch.setattr(Saving, "save", save)
    succeed(*fit_arguments(place, run, "--json"))
    for name in ("figures.json", "posterior.safetensors", "history.csv"):
        assert (run / name).read_bytes() == (place / "run" / name).read_bytes()


def test_fit_takes_a_table_as_it_takes_a_folder(place, tmp_path):
    found = json.loads(succeed(*fit_arguments(place, tmp_path, "--json", data="table.csv")))
    assert found == json.loads((place / "run" / "figures.json").read_text())


def test_a_run_is_watched_listed_and_cited(place, tmp_path):
    pytest.importorskip("tensorboard")
    run = tmp_path / "deep" / "run"
    more = ("--tensorboard", "--mixture", "none", "--epochs", 1, "--json")
    succeed(*fit_arguments(place, run, *more))
    assert {path.name for path in run.iterdir()} == FILES | {"tensorboard"}
    assert next((run / "tensorboard").iterdir()).stat().st_size > 200
    (row,) = json.loads(succeed("runs", tmp_path, "--json"))
    assert row["run"] == str(run)
    assert (row["state"], row["particles"], row["method"]) == ("finished", 3, "low-rank")
    assert row["figures"]["accuracy"] == json.loads((run / "figures.json").read_text())["accuracy"]
    assert "dangelo2021repulsive" in succeed("cite", run)


def test_flags_go_over_the_yaml(place, tmp_path):
    config = tmp_path / "config.yaml"
    content = {
        "data": str(place / "images"),
        "network": f"hf:{place / 'network'}",
        "particles": 4,
        "rank": 3,
        "epochs": 1,
        "transport": "svgd",
        "transport_options": {"temperature": 0.5, "prior_std": 2.0},
    }
    config.write_text(yaml.safe_dump(content))
    flags = ("--config", config, "--particles", 2, "--temperature", 0.1)
    printed = succeed("fit", *flags, "--out", tmp_path / "run", "--quiet")
    assert "accuracy" in printed
    assert str(tmp_path / "run") in printed.replace("\n", "")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    options = {"temperature": 0.1, "prior_std": 2.0}
    asked = content | {"particles": 2, "transport_options": options}
    assert {name: written[name] for name in asked} == asked
    assert open_run(tmp_path / "run").posterior.particles == 2


def test_fit_adapts_efficientnet_lite0(place, tmp_path):
    options = ("--image-size", 64, "--epochs", 1, "--particles", 2, "--network")
    arguments = fit_arguments(place, tmp_path / "run", *options, "efficientnet-lite0", "--json")
    found = json.loads(succeed(*arguments))
    assert 0 <= found["accuracy"] <= 1
    run = open_run(tmp_path / "run")
    assert (run.preprocess.height, run.posterior.particles) == (64, 2)


# ---------------------------------------------------------------- evaluate, predict, cost


def test_evaluate_measures_the_run_and_the_shift(place):
    known = json.loads(succeed("evaluate", place / "run", "--data", place / "table.csv", "--json"))
    assert known["accuracy"] == 1.0
    options = ("--data", place / "images", "--ood", place / "images" / "day")
    shifted = json.loads(succeed("evaluate", place / "run", *options, "--json"))
    intervals = known.pop("intervals")
    assert {name: shifted[name] for name in known} == known
    assert {name: shifted["intervals"][name] for name in intervals} == intervals
    assert shifted["entropy_ood"] != shifted["entropy"]
    assert 0 <= shifted["auroc_ood_mi"] <= 1
    assert "auroc ood mi" in succeed("evaluate", place / "run", *options)


def test_predict_writes_one_row_an_image_ranked_by_entropy(place, tmp_path):
    out = tmp_path / "predictions.csv"
    lone = place / "images" / "day" / "00.png"
    printed = succeed("predict", place / "run", place / "images", lone, "--out", out, "--json")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["image", "class", "probability", "entropy", "mutual_information", "rank"]
    columns += ["p(day)", "p(night)"]
    assert list(rows[0]) == columns
    images = [*sorted((place / "images").rglob("*.png")), lone]
    assert [row["image"] for row in rows] == list(map(str, images))
    assert [row["class"] for row in rows] == [path.parent.name for path in images]
    entropies = [float(row["entropy"]) for row in rows]
    ranks = [int(row["rank"]) for row in rows]
    assert sorted(ranks) == list(range(1, 26))
    by_rank = [entropy for _, entropy in sorted(zip(ranks, entropies, strict=True))]
    assert by_rank == sorted(entropies, reverse=True)
    assert json.loads(printed) == [
        {name: kind(row[name]) for name, kind in zip(columns, KINDS, strict=True)} for row in rows
    ]
    for row in rows:
        p = float(row["probability"])
        both = {name: float(row[f"p({name})"]) for name in CLASSES}
        assert both[row["class"]] == p == max(both.values())
        assert sum(both.values()) == pytest.approx(1, abs=2e-6)
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        assert float(row["entropy"]) == pytest.approx(entropy, abs=2e-5)
        assert 0 <= float(row["mutual_information"]) <= float(row["entropy"])


KINDS = (str, str, float, float, float, int, float, float)


def test_a_file_is_what_its_name_ends_in(place, tmp_path, monkeypatch, capsys):
    asked = ("predict", place / "run", place / "images" / "day", "--out")
    printed = succeed(*asked, tmp_path / "p.jsonl", "--json")
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(printed)
    # What cannot be written is told of before anything is opened, whatever the run is.
    asked = ("predict", tmp_path / "nothing", place / "images", "--out")
    assert "as .csv or .jsonl" in refused(monkeypatch, capsys, *asked, tmp_path / "p.xlsx")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refused(monkeypatch, capsys, *asked, tmp_path / "folder.csv")


def test_what_images_do_not_have_is_refused(place, tmp_path, monkeypatch, capsys):
    of_texts = ("--column", "text=review")
    for asked in (
        ("evaluate", place / "run", "--data", place / "images", *of_texts),
        ("predict", place / "run", place / "images", "--out", tmp_path / "p.csv", *of_texts),
    ):
        assert "--column is for runs on texts" in refused(monkeypatch, capsys, *asked)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "red"}\n')
    asked = ("generate", place / "run", tmp_path / "prompts.jsonl", "--out")
    sentence = refused(monkeypatch, capsys, *asked, tmp_path / "a.jsonl")
    assert "is a run on images, which writes no text" in sentence
    assert "as .csv or .jsonl" in refused(monkeypatch, capsys, *asked, tmp_path / "a.txt")


def test_predict_shows_the_least_certain_images(place, tmp_path):
    out = tmp_path / "p.csv"
    printed = succeed("predict", place / "run", place / "images", "--out", out)
    assert "least certain of 24 images" in printed
    assert printed.endswith(f"All are in {out}\n")


def test_cost_counts_the_run(place):
    found = json.loads(succeed("cost", place / "run", "--json"))
    # Query and value of 2 layers at 2 x (32 + 32), a head of 32 x 2 + 2.
    per_particle = 4 * 2 * 64 + 66
    assert found["trainable_per_particle"] == per_particle
    assert found["trainable"] == 3 * per_particle
    assert found["bytes_on_disk"] == 3 * per_particle * 4
    assert "1,734" in succeed("cost", place / "run")


def test_compare_prints_its_results(place, tmp_path):
    options = ("--methods", "probe,lora", "--seeds", 1, "--epochs", 1, "--out", tmp_path)
    task = ("--data", place / "images", "--network", f"hf:{place / 'network'}")
    found = json.loads(succeed("compare", *task, *options, "--json"))
    assert set(found["methods"]) == {"probe", "lora"}
    assert found == json.loads((tmp_path / "results.json").read_text())
    assert "| linear probe |" in (tmp_path / "report.md").read_text()
    assert "linear probe" in (tmp_path / "report.html").read_text()
    for picture in ("extremes", "densities", "reliability"):
        with Image.open(tmp_path / f"{picture}.png") as drawn:
            assert drawn.width > 300


def test_report_writes_a_page_on_runs_and_comparisons(place, tmp_path, monkeypatch, capsys):
    run, compared = tmp_path / "run", tmp_path / "compared"
    shutil.copytree(place / "run", run)
    task = ("--data", place / "images", "--network", f"hf:{place / 'network'}")
    printed = succeed(
        "compare", *task, "--methods", "probe,lora", "--seeds", 1, "--epochs", 1, "--out", compared
    )
    assert printed.endswith(f"the report in {compared / 'report.html'}\n")
    printed = succeed("report", run, compared, "--ood", place / "images" / "day")
    page = (run / "report.html").read_text()
    assert printed.startswith(f"The report is {run / 'report.html'} (2.")
    assert page.count("<article") == 2
    assert "linear probe" in page
    assert "notices ood (day)" in page
    out = tmp_path / "elsewhere.html"
    (compared / "report.html").unlink()
    succeed("report", compared, "--out", out)
    assert out.exists()
    assert not (compared / "report.html").exists()
    sentence = refused(monkeypatch, capsys, "report", compared, "--attack", "fgsm")
    assert "leave them out" in sentence
    assert "'fgsm'" in refused(monkeypatch, capsys, "report", run, "--attack", "fgms")
    assert "'fog'" in refused(monkeypatch, capsys, "report", run, "--corruptions", "fgo")


def test_report_is_asked_of_nobody_without_its_libraries(place, tmp_path, monkeypatch, capsys):
    for module in ("plotly", "plotly.graph_objects", "plotly.offline"):
        monkeypatch.setitem(sys.modules, module, None)
    sentence = refused(monkeypatch, capsys, "report", place / "run", "--out", tmp_path / "r.html")
    assert "bella-bnn[report]" in sentence
    task = ("--data", place / "images", "--network", f"hf:{place / 'network'}", "--out", tmp_path)
    printed = succeed("compare", *task, "--methods", "probe", "--seeds", 1)
    assert printed.endswith(f"the report in {tmp_path / 'report.md'}\n")
    assert not (tmp_path / "report.html").exists()


# ---------------------------------------------------------------- export


def plain_network(place):
    return open_network(f"hf:{place / 'network'}", 2).network


def inputs(place):
    images = ImageList(place / "images", open_run(place / "run").preprocess)
    return torch.stack([images[i] for i in range(0, 24, 4)])


def test_export_writes_the_mean_of_the_changes(place, tmp_path):
    out = tmp_path / "soup.safetensors"
    assert "numbers" in succeed("export", place / "run", "--out", out)
    soup = load_file(out)
    network = plain_network(place)
    network.load_state_dict(soup, strict=True)
    base = plain_network(place).state_dict()
    posterior = open_run(place / "run").posterior
    singles = [posterior.particle(i).state_dict() for i in range(3)]
    changed = 0
    for name, value in base.items():
        mean = torch.stack([single[name] - value for single in singles]).mean(0)
        torch.testing.assert_close(soup[name], value + mean, atol=1e-6, rtol=1e-5)
        changed += bool(mean.abs().max() > 1e-4)
    assert changed == 6  # four projections, the head's weight and bias


def test_export_of_one_particle_gives_its_outputs(place, tmp_path):
    x = inputs(place)
    with torch.no_grad():
        together = open_run(place / "run").posterior(x).logits
    for particle in range(3):
        out = tmp_path / f"{particle}.safetensors"
        succeed("export", place / "run", "--out", out, "--particle", particle)
        network = plain_network(place)
        network.load_state_dict(load_file(out), strict=True)
        with torch.no_grad():
            torch.testing.assert_close(network(x).logits, together[particle], atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-4


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--data", "no/such/place"), ("no/such/place", "folder")),
        (("--network", "efficientnet-lite9"), ("'efficientnet-lite9'", "'efficientnet-lite0'")),
        (("--network", "hf:"), ("'hf:'", "behind the colon")),
        (("--target-modules", "q_projj"), ("'q_projj'", "'q_proj'")),
        (("--rank", 0), ("rank=0", "1")),
        (("--rank", 33), ("rank=33", "1 to 32")),
        (("--particles", 0), ("particles=0", "1")),
        (("--epochs", 0), ("epochs=0", "1")),
        (("--learning-rate", -1), ("learning_rate=-1", "0")),
        (("--image-size", 0), ("image_size=0", "1")),
        (("--transport", "svdg"), ("'svdg'", "'svgd'")),
        (("--seed", -1), ("seed=-1", "0")),
        (("--method", "lowrank"), ("'lowrank'", "'low-rank'")),
        (("--method", "full", "--rank", 2), ("rank", "low-rank")),
        (("--heads", "zero"), ("head_init='zero'", "probe")),
        (("--option", "gain"), ("--option gain", "NAME=VALUE")),
        (("--option", "gian=2"), ("'gian'", "'gain'")),
        (("--precision", "int8"), ("precision='int8'", "bf16")),
        (("--patience", 0), ("patience=0", "1")),
        (("--workers", -1), ("workers=-1", "0")),
        (("--device", "abacus"), ("device='abacus'", "cpu")),
    ],
)
def test_fit_refuses_bad_flags(place, tmp_path, monkeypatch, capsys, more, said):
    run = tmp_path / "run"
    sentence = refused(monkeypatch, capsys, *fit_arguments(place, run, *more))
    assert all(word in sentence for word in said), sentence
    assert hidden(tmp_path) == []
    assert not (run / "posterior.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", ("'epoch'", "epochs")),
        ("- epochs", ("mapping",)),
        ("", ("mapping",)),
        ("epochs: [1", ("not valid YAML",)),
        ("rank: four", ("rank='four'",)),
        ("transport_options: 3", ("transport_options=3",)),
        ("transport_options: {temprature: 1}", ("temprature",)),
    ],
)
def test_fit_refuses_bad_configurations(place, tmp_path, monkeypatch, capsys, text, said):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    arguments = fit_arguments(place, tmp_path / "run", "--config", config)
    rank = arguments.index("--rank")  # a flag would go over the file's
    del arguments[rank : rank + 2]
    sentence = refused(monkeypatch, capsys, *arguments)
    assert all(word in sentence for word in said), sentence


def test_fit_wants_data_and_a_configuration_that_is_there(tmp_path, monkeypatch, capsys):
    assert "--data" in refused(monkeypatch, capsys, "fit", "--out", tmp_path / "run")
    missing = tmp_path / "none.yaml"
    assert "none.yaml" in refused(monkeypatch, capsys, "fit", "--config", missing)
    assert str(tmp_path) in refused(monkeypatch, capsys, "fit", "--config", tmp_path)


def test_fit_refuses_folders_without_images(place, tmp_path, monkeypatch, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    run = tmp_path / "run"
    arguments = fit_arguments(place, run, "--data", empty)
    assert "no class folders" in refused(monkeypatch, capsys, *arguments)
    (empty / "day").mkdir()
    assert "holds no images" in refused(monkeypatch, capsys, *arguments)
    assert not run.exists()


@pytest.mark.parametrize(
    ("count", "classes", "said"), [(2, 2, "too few images"), (12, 1, "one class alone, 'day'")]
)
def test_too_few_images_or_classes_are_refused(
    place, tmp_path, monkeypatch, capsys, count, classes, said
):
    images = write_images(tmp_path / "images", count)
    for name in CLASSES[classes:]:
        shutil.rmtree(images / name)
    arguments = fit_arguments(place, tmp_path / "run", "--data", images)
    assert said in refused(monkeypatch, capsys, *arguments)
    network = f"hf:{place / 'network'}"
    arguments = ("compare", "--data", images, "--network", network, "--out", tmp_path / "run")
    assert said in refused(monkeypatch, capsys, *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n"])
def test_fit_names_the_image_that_it_cannot_read(place, tmp_path, monkeypatch, capsys, content):
    images = write_images(tmp_path / "images")
    for name in CLASSES:  # whichever part it falls into
        for index in range(6):
            (images / name / f"broken{index}.png").write_bytes(content)
    run = tmp_path / "run"
    sentence = refused(monkeypatch, capsys, *fit_arguments(place, run, "--data", images))
    assert "broken" in sentence
    assert hidden(run) == []
    assert not (run / "posterior.safetensors").exists()
    # With the images mended, the same command works.
    for path in images.rglob("broken*"):
        path.unlink()
    succeed(*fit_arguments(place, run, "--data", images, "--json"))
    assert {path.name for path in run.iterdir()} == FILES


@pytest.mark.parametrize(
    "more",
    [
        ("--rank", 4),
        ("--epochs", 3),
        ("--seed", 1),
        ("--particles", 4),
        ("--network", "efficientnet-lite0"),
    ],
)
def test_fit_leaves_the_run_that_it_cannot_continue(place, tmp_path, monkeypatch, capsys, more):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    sentence = refused(monkeypatch, capsys, *fit_arguments(place, run, *more))
    assert more[0].strip("-") in sentence
    assert "--fresh" in sentence
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "cost", "report"])
def test_a_folder_that_is_no_run_is_refused(place, tmp_path, monkeypatch, capsys, command):
    more = {
        "evaluate": ("--data", place / "images"),
        "predict": (place / "images", "--out", tmp_path / "out.csv"),
        "export": ("--out", tmp_path / "out"),
        "cost": (),
        "report": (),
    }[command]
    for folder in (place / "images", tmp_path / "none", place / "table.csv"):
        assert str(folder) in refused(monkeypatch, capsys, command, folder, *more)
    assert list(tmp_path.iterdir()) == []


def test_a_posterior_of_another_network_is_refused(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    model = read_sealed_json(run / "model.json")
    write_sealed_json(run / "model.json", model | {"network": f"hf:{place / 'other'}"})
    assert "another network" in refused(monkeypatch, capsys, "cost", run)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *itertools.product(("model.json", "posterior.safetensors"), (None, "{", "{}")),
        *itertools.product(("posterior.json",), ("{", "{}")),  # without it a run opens
    ],
)
def test_a_damaged_run_is_refused(place, tmp_path, monkeypatch, capsys, name, content):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    assert str(run) in refused(monkeypatch, capsys, "cost", run)


def test_a_damaged_checkpoint_is_refused(place, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / "checkpoint.safetensors").write_bytes(
        (run / "checkpoint.safetensors").read_bytes()[:500]
    )
    assert "checkpoint.safetensors" in refused(monkeypatch, capsys, *fit_arguments(place, run))


@pytest.mark.parametrize("particle", [3, -1])
def test_export_refuses_a_particle_out_of_range(place, tmp_path, monkeypatch, capsys, particle):
    out = tmp_path / "out.safetensors"
    arguments = ("export", place / "run", "--out", out, "--particle", particle)
    sentence = refused(monkeypatch, capsys, *arguments)
    assert f"no particle {particle}" in sentence
    assert "0 to 2" in sentence
    assert list(tmp_path.iterdir()) == []


def test_predict_and_evaluate_name_what_they_cannot_read(place, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    out = tmp_path / "p.csv"
    for image in (broken, tmp_path / "none.png", tmp_path / "nowhere"):
        arguments = ("predict", place / "run", image, "--out", out)
        assert str(image) in refused(monkeypatch, capsys, *arguments)
    assert not out.exists()
    strange = write_images(tmp_path / "strange", count=1)
    (strange / "day").rename(strange / "dawn")
    sentence = refused(monkeypatch, capsys, "evaluate", place / "run", "--data", strange)
    assert "dawn" in sentence
    assert "'day'" in sentence


def test_an_output_that_cannot_be_written_is_one_sentence(place, monkeypatch, capsys):
    inside = place / "table.csv" / "out.safetensors"
    sentence = refused(monkeypatch, capsys, "export", place / "run", "--out", inside)
    assert "table.csv" in sentence


def test_demo_and_compare_know_their_names(place, tmp_path, monkeypatch, capsys):
    assert "'elpv'" in refused(monkeypatch, capsys, "demo", "--data", "elvp")
    own = ("--data", place / "images", "--network", f"hf:{place / 'network'}", "--out", tmp_path)
    sentence = refused(monkeypatch, capsys, "compare", *own, "--methods", "probe,lorra")
    assert "'lorra'" in sentence
    assert "'lora'" in sentence
    assert "seeds=0" in refused(monkeypatch, capsys, "compare", *own, "--seeds", 0)
    assert "nowhere" in refused(monkeypatch, capsys, "compare", "--data", "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [("transformers", "hf", "fit"), ("elpv_dataset", "demo", "demo")],
)
def test_a_missing_library_is_named_with_its_extra(
    place, tmp_path, monkeypatch, capsys, module, extra, command
):
    monkeypatch.setitem(sys.modules, module, None)
    run = tmp_path / "run"
    arguments = fit_arguments(place, run) if command == "fit" else ("demo", "--out", run)
    sentence = refused(monkeypatch, capsys, *arguments)
    assert module in sentence
    assert f"bella-bnn[{extra}]" in sentence
    assert hidden(tmp_path) == []


# ---------------------------------------------------------------- as a process


def test_the_process_prints_json_and_nothing_else(place):
    done = shell("cost", place / "run", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["particles"] == 3


def test_the_process_ends_with_status_2_and_a_sentence(place):
    done = shell("cost", place / "images")
    sentence = f"bella: {place / 'images'} holds no model.json: is it a run folder?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_quiet_lets_no_other_library_speak(place, tmp_path):
    run = tmp_path / "run"
    commands = (
        fit_arguments(place, run, "--quiet", "--epochs", 1),
        ("predict", run, place / "images", "--out", tmp_path / "p.csv", "--quiet"),
        ("export", run, "--out", tmp_path / "plain", "--quiet"),
    )
    code = (
        "import sys\nfrom bella.cli import main\n"
        f"for arguments in {[list(map(str, arguments)) for arguments in commands]!r}:\n"
        "    sys.argv = ['bella', *arguments]\n    main()"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    arguments = fit_arguments(place, tmp_path / "loud", "--epochs", 1)
    loud = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "the particle axis opens at vit.layers.0" in loud.stderr
    assert "Note: 14 training images make 2 steps an epoch" in loud.stderr


@pytest.mark.parametrize(
    ("stop", "status"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_a_stopped_process_says_how_to_go_on(place, tmp_path, stop, status):
    run = tmp_path / "run"
    source = str(Path(bella.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "bella", *fit_arguments(place, run, "--epochs", 5000)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(1200):
        if (run / "run.json").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert "the same command continues a run" in err.splitlines()[-1]
    assert err.count("bella: stopped") == 1
    assert open_run(run).posterior.particles == 3


def test_a_fit_that_is_stopped_at_once_says_that_nothing_is_there(
    place, tmp_path, monkeypatch, capsys
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bella.runs.fitting.fit", stop)
    for folder, words in ((tmp_path / "new", "nothing was written"), (place / "run", "as it was")):
        arguments = fit_arguments(place, folder, "--fresh")
        monkeypatch.setattr(sys, "argv", ["bella", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 130
        said = capsys.readouterr().err.splitlines()[-1]
        assert words in said
        assert "the same command begins anew" in said
    assert not (tmp_path / "new").exists()


def test_the_version_is_told():
    done = shell("--version")
    assert (done.returncode, done.stdout) == (0, f"bella {bella.__version__}\n")


def test_help_shows_the_defaults_that_hold():
    """Help must not import what knows the defaults, so they stand twice: as one."""
    parameters = inspect.signature(fit_command, eval_str=True).parameters
    shown = {}
    for name, parameter in parameters.items():
        (option,) = get_args(parameter.annotation)[1:] or (None,)
        if option is not None and isinstance(option.show_default, str):
            shown[name] = option.show_default
    fields = {"heads": "head_init", "template": "templates"}
    plain = complete(RunConfig(data="x"))
    texts = TextConfig(task="text", data="x")
    questions = VqaConfig(task="vqa", data="x")
    assert shown.pop("task") == "images"
    told_in_words = {
        "classes": None,
        "quantised": None,
        "limit": None,
        "image_size": None,
        "alpha": None,
        "target_modules": None,
        "patience": None,
        "checkpoint_every": None,
        "device": None,
        "prompt": None,
        "test_limit": None,
        "projector_epochs": None,
    }
    temperature = shown.pop("temperature")
    assert temperature.startswith(f"{plain.transport_options['temperature']:g} ")
    for name, text in shown.items():
        field = fields.get(name, name)
        value = getattr(next(c for c in (plain, texts, questions) if hasattr(c, field)), field)
        if name in told_in_words:
            assert value is None
        else:
            (value,) = value if isinstance(value, list) else (value,)
            assert text.split(";")[0] == f"{value}", name
    kinds = {kind: recipe.settings for kind, recipe in KINDS_OF_POSTERIORS.items()}
    for kind in ("rank1", "ssvi", "full"):
        assert (
            f"{kind} {kinds[kind]['learning_rate']:.0e}".replace("e-0", "e-")
            in (shown["learning_rate"])
        )
    assert set(parameters) >= set(shown)


def test_help_names_every_method():
    words = shell("compare", "--help", COLUMNS="1000").stdout
    named = {word.strip(" ,.│") for word in words.replace(":", " ").split()}
    assert {name for name in METHODS if not name.endswith("-bf16")} <= named
    assert set(KINDS_OF_POSTERIORS) <= set(
        shell("fit", "--help", COLUMNS="1000").stdout.replace(",", " ").replace(".", " ").split()
    )


def test_help_names_every_command_and_needs_no_torch():
    done = shell("--help", COLUMNS="100", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "pydantic"}


def test_importing_bella_imports_no_optional_library():
    optional = "transformers timm datasets matplotlib sklearn torchmetrics accelerate peft"
    code = (
        "import sys, bella; bella.low_rank; bella.transport; bella.load; bella.predict; "
        f"print(*[name for name in '{optional}'.split() if name in sys.modules])"
    )
    source = str(Path(bella.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
        check=True,
    )
    assert done.stdout.split() == []


# ---------------------------------------------------------------- odd names and bad images


def test_names_like_markup_or_not_utf8_are_printed_and_written(place, tmp_path):
    source = next((place / "images" / "day").iterdir())
    names = (b"a [red] b.png", b"b].png", b"\xff\xfe.png", b"new\nline.png", b"\x1b[31m.png")
    (tmp_path / "in[").mkdir()  # with the next name a closing tag: in[/b].png
    for name in names:
        shutil.copy(source, os.fsencode(tmp_path) + b"/in[/" + name)
    out = tmp_path / "[bold]p.csv"
    printed = succeed("predict", place / "run", tmp_path / "in[", "--out", out)
    assert "\x1b" not in printed
    shown = re.sub(r"[│┃\s]", "", printed)  # long names go over several lines
    for part in ("a[red]b", "[/b]", r"\xff\xfe", r"new\nline", r"\x1b[31m", "[bold]p.csv"):
        assert part in shown
    written = out.read_bytes()
    for name in names:
        assert name in written


def test_what_bella_warns_of_is_a_sentence():
    usual = warnings.formatwarning
    with notes():
        mine = warnings.formatwarning("Mind this.", UserWarning, bella.__file__, 3)
        other = warnings.formatwarning("Mind that.", UserWarning, "elsewhere.py", 3)
    assert mine == "Note: Mind this.\n"
    assert other == "elsewhere.py:3: UserWarning: Mind that.\n"
    assert warnings.formatwarning is usual


def test_classes_like_markup_are_printed(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    model = read_sealed_json(run / "model.json")
    write_sealed_json(run / "model.json", model | {"classes": ["a [/b]", "[red]c"]})
    printed = succeed("predict", run, place / "images", "--out", tmp_path / "p.csv")
    assert "[/b]" in printed or "[red]c" in printed


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_images_are_skipped_where_the_flag_says_so(place, tmp_path, monkeypatch, capsys):
    images = write_images(tmp_path / "images")
    (images / "day" / "bad.png").write_bytes(b"no image")
    skip = ("--on-bad-image", "skip")
    run = tmp_path / "run"
    assert "bad.png" in refused(monkeypatch, capsys, *fit_arguments(place, run, "--data", images))
    assert not run.exists()
    succeed(*fit_arguments(place, run, "--data", images, *skip))
    assert read_sealed_json(run / "model.json")["skipped_images"] == 1
    out = tmp_path / "p.csv"
    assert "bad.png" in refused(monkeypatch, capsys, "predict", run, images, "--out", out)
    succeed("predict", run, images, "--out", out, *skip)
    assert len(out.read_text().splitlines()) == 25
    succeed("evaluate", run, "--data", images, *skip)
    flags = ["predict", str(run), str(images), "--on-bad-image", "maybe"]
    wrong = CliRunner().invoke(app, flags, env={"COLUMNS": "200"})
    assert wrong.exit_code == 2
    assert "'maybe' is not one of 'stop', 'skip'" in wrong.stderr
