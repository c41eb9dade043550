"""A user's own images through the command, and one sentence for each bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from bella.cli.app import app, main
from bella.files import read_sealed_json, write_sealed_json
from bella.runs import open_run


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Bright and dark squares, twelve of each."""
    root = tmp_path_factory.mktemp("photos")
    for name, shade in (("dark", 40), ("light", 210)):
        (root / name).mkdir()
        for i in range(12):
            Image.new("RGB", (40, 36), (shade + i, shade - i, shade)).save(root / name / f"{i}.png")
    return root


def run(capsys, monkeypatch, *arguments):
    """The command in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["bella", *map(str, arguments)])
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def bella(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos, network):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    arguments = [
        *("fit", "--data", photos, "--network", network, "--out", folder, "--epochs", 6),
        *("--learning-rate", 0.02, "--particles", 3, "--batch-size", 4, "--quiet"),
    ]
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder


def test_a_users_folder_goes_through_fit(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "model.json", "run.json", "history.csv", "curves.png"} <= names
    assert {"figures.json", "posterior.json", "posterior.safetensors"} <= names
    figures = json.loads((trained / "figures.json").read_text())
    assert figures["accuracy"] > 0.9
    assert not [name for name in names if name.startswith(".")]
    with Image.open(trained / "curves.png") as picture:
        assert picture.width > 300


def test_the_same_command_again_gives_the_same_figures(bella, trained, photos, network):
    before = json.loads((trained / "figures.json").read_text())
    status, out, _ = bella(
        *("fit", "--data", photos, "--network", network, "--out", trained, "--epochs", 6),
        *("--learning-rate", 0.02, "--particles", 3, "--batch-size", 4, "--json"),
    )
    assert status == 0
    assert json.loads(out) == before


def test_predict_writes_one_row_an_image(bella, trained, photos, tmp_path):
    out = tmp_path / "predictions.csv"
    status, text, _ = bella("predict", trained, photos, "--out", out)
    assert status == 0
    assert "least certain" in text
    with out.open() as file:
        rows = list(csv.DictReader(file))
    expected = ["image", "class", "probability", "entropy", "mutual_information", "rank"]
    assert list(rows[0]) == [*expected, "p(dark)", "p(light)"]
    assert len(rows) == 24
    by_rank = sorted(rows, key=lambda row: int(row["rank"]))
    assert [int(row["rank"]) for row in by_rank] == list(range(1, 25))
    entropies = [float(row["entropy"]) for row in by_rank]
    assert entropies == sorted(entropies, reverse=True)
    right = sum(row["class"] in row["image"].split("/")[-2] for row in rows)
    assert right >= 22


def test_evaluate_and_cost_answer_programs(bella, trained, photos, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    Image.effect_noise((40, 40), 90).save(strange / "noise.png")
    status, out, _ = bella("evaluate", trained, "--data", photos, "--ood", strange, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["accuracy"] > 0.9
    assert 0 <= found["auroc_ood_mi"] <= 1
    status, out, _ = bella("cost", trained, "--json")
    assert json.loads(out)["particles"] == 3
    assert bella("cost", trained)[0] == 0


def others(root, count, noise=0):
    """Other squares of the same two shades, with their labels."""
    for name, shade in (("dark", 40), ("light", 210)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            square = Image.new("RGB", (38, 38), (shade + i % 30, shade, shade - i % 20))
            grain = Image.effect_noise((38, 38), 1 + noise).convert("RGB")
            Image.blend(square, grain, 0.3 if noise else 0).save(root / name / f"{i}.png")
    return root


def test_evaluate_says_what_to_do_and_how_it_fares_under_shift_and_attack(
    bella, trained, photos, tmp_path
):
    asked = (
        *("evaluate", trained, "--data", photos, "--calibrate", others(tmp_path / "cal", 30)),
        *("--risk", 0.2, "--delta", 0.2, "--miss", 0.1, "--sets", "aps"),
        *("--ood", others(tmp_path / "far", 4, noise=90), "--ood", photos / "dark"),
        *("--corrupt", "contrast,gaussian_noise", "--severities", "1,5", "--corrupt-size", 96),
        *("--attack", "pgd", "--budgets", "0.01,0.1"),
    )
    status, out, error = bella(*asked, "--json", "--out", tmp_path / "found")
    assert status == 0, error
    found = json.loads(out)
    assert json.loads((tmp_path / "found" / "evaluation.json").read_text()) == found
    rows = [(row["kind"], row["severity"]) for row in found["corruptions"]]
    assert rows == [(k, s) for k in ("contrast", "gaussian_noise") for s in (1, 5)]
    assert [row["budget"] for row in found["attacks"]] == [0.01, 0.1]
    assert found["nll"] < found["attacks"][0]["nll"] < found["attacks"][1]["nll"]
    sets, referrals = found["decisions"]["sets"], found["decisions"]["referrals"]
    assert list(sets["parts"]) == list(referrals["parts"]) == [photos.name, "far"]
    assert sets["parts"][photos.name]["coverage"] >= 0.8
    assert "nll_far" in found
    assert "nll_dark" not in found  # a folder without class folders has no labels
    low, high = found["intervals"]["auroc_far_entropy"]
    assert low <= found["auroc_far_entropy"] <= high
    for name in ("risk_coverage", "corruptions", "attacks"):
        with Image.open(tmp_path / "found" / f"{name}.png") as picture:
            assert picture.width > 300
    status, out, _ = bella(*asked)
    assert status == 0
    for words in (
        "Severity 5, mean of 2 corruptions",
        "PGD of 0.1",
        "Prediction sets (APS",
        "Refer",
    ):
        assert words in out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--corrupt", "foggy"), "near are 'fog'"),
        (("--corrupt", "fog"), "at least 96"),
        (("--corrupt", "fog", "--severities", "6", "--corrupt-size", 96), "from 1 to 5"),
        (("--corrupt", "fog", "--severities", "x"), "--severities x"),
        (("--attack", "fgms"), "choose 'fgsm'"),
        (("--attack", "fgsm", "--budgets", "-1"), "budget=-1"),
        (("--calibrate", "SAME"), "among those to evaluate on"),
        (("--ood", "nowhere"), "neither a folder nor a CSV"),
        (("--risk", "0.1"), "--risk is for --calibrate"),
        (("--corrupt-size", "96"), "--corrupt-size is for --corrupt"),
        (("--budgets", "0.1"), "--budgets is for --attack"),
    ],
)
def test_evaluate_refuses_in_a_sentence(bella, trained, photos, more, words):
    more = [photos if word == "SAME" else word for word in more]
    status, _, error = bella("evaluate", trained, "--data", photos, *more)
    assert status == 2
    assert words in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("bella: ")


def test_a_table_of_paths_and_a_configuration_file(bella, photos, network, tmp_path):
    table = tmp_path / "images.csv"
    lines = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    table.write_text("path,label\n" + "\n".join(lines) + "\n")
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {table}\nnetwork: '{network}'\nepochs: 9\nparticles: 2\nrank: 2\n")
    out = tmp_path / "run"
    status, text, _ = bella("fit", "--config", config, "--epochs", 1, "--out", out, "--json")
    assert status == 0
    assert "accuracy" in json.loads(text)
    written = (out / "config.yaml").read_text()
    assert "epochs: 1" in written
    assert "particles: 2" in written


def test_exports_are_plain_networks(bella, trained, tmp_path):
    opened = open_run(trained)
    x = torch.randn(2, 3, 32, 32)
    for arguments, plain in (
        ((), opened.posterior.soup()),
        (("--particle", 1), opened.posterior.particle(1)),
    ):
        out = tmp_path / "plain.safetensors"
        assert bella("export", trained, "--out", out, *arguments)[0] == 0
        expected = plain(x).logits
        for p in plain.parameters():
            p.data.zero_()
        plain.load_state_dict(load_file(out), strict=True)
        torch.testing.assert_close(plain(x).logits, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--data", "nowhere"], "nowhere"),
        (["fit"], "--data"),
        (["fit", "--data", "EMPTY"], "class"),
        (["fit", "--data", "PHOTOS", "--network", "resnet"], "near"),
        (["fit", "--data", "PHOTOS", "--network", "NET", "--target-modules", "fc7"], "fc2"),
        (["fit", "--data", "PHOTOS", "--network", "NET", "--rank", "0"], "rank"),
        (["fit", "--data", "PHOTOS", "--network", "NET", "--rank", "99"], "from 1 to 32"),
        (["fit", "--data", "PHOTOS", "--network", "NET", "--particles", "0"], "particles"),
        (["fit", "--data", "PHOTOS", "--network", "NET", "--transport", "svdg"], "svgd"),
        (["fit", "--config", "nothing.yaml"], "nothing.yaml"),
        (["fit", "--config", "LIST"], "mapping"),
        (["fit", "--config", "UNKNOWN"], "colour"),
        (["fit", "--data", "BROKEN", "--network", "NET"], "broken.png"),
        (["predict", "EMPTY", "PHOTOS"], "model.json"),
        (["evaluate", "RUN", "--data", "EMPTY"], "class"),
        (["predict", "RUN", "EMPTY"], "no image"),
        (["export", "RUN", "--out", "x.safetensors", "--particle", "3"], "no particle 3"),
        (["demo", "--data", "mnist"], "fashion-mnist"),
        (["compare", "--methods", "belle", "--data", "elpv"], "bella"),
    ],
)
def test_bad_input_gets_one_sentence(
    bella, arguments, words, tmp_path, photos, network, trained, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "unknown.yaml").write_text(f"data: {photos}\ncolour: red\n")
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (40, 40)).save(tmp_path / "broken" / name / f"{i}.png")
    for i in range(8):
        (tmp_path / "broken" / "a" / f"{i}broken.png").write_bytes(b"no image")
    places = {
        "EMPTY": tmp_path / "empty",
        "LIST": tmp_path / "list.yaml",
        "UNKNOWN": tmp_path / "unknown.yaml",
        "BROKEN": tmp_path / "broken",
        "PHOTOS": photos,
        "NET": network,
        "RUN": trained,
    }
    status, out, err = bella(*(places.get(word, word) for word in arguments))
    assert status == 2
    said = err.strip().splitlines()[-1]  # transformers shows a bar of its own before it
    assert said.startswith("bella: ")
    assert words in said
    assert "Traceback" not in err + out
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.name.startswith(".")]
    assert not left


def test_a_posterior_of_another_network_is_refused(bella, trained, photos, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    other = read_sealed_json(copy / "model.json")
    write_sealed_json(copy / "model.json", other | {"classes": ["a", "b", "c"]})
    status, _, err = bella("predict", copy, photos)
    assert status == 2
    assert "another network" in err


def test_a_missing_extra_is_named(bella, monkeypatch, photos, network, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, _, err = bella("fit", "--data", photos, "--network", network, "--out", tmp_path)
    assert status == 2
    assert "bella-bnn[hf]" in err


def test_help_is_light():
    code = "import sys, bella.cli.app; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"
    heavy = "transformers timm datasets matplotlib sklearn torchmetrics accelerate"
    code = f"import sys, bella; print([m for m in '{heavy}'.split() if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
