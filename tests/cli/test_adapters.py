"""Adapters through the command: a run that starts as them, and one that leaves as them."""

from __future__ import annotations

import copy
import json
import sys
import warnings

import peft
import pytest
import torch
import transformers
import yaml
from PIL import Image

from bella.cli.app import main
from bella.runs import open_run

CONFIG = transformers.ViTConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
    num_labels=2,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network, twelve pictures, and two adapters that PEFT made."""
    place = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    base = transformers.ViTForImageClassification(CONFIG)
    base.save_pretrained(place / "vit")
    for name, shade in (("dark", 40), ("light", 210)):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.new("RGB", (16, 16), (shade + i, shade - i, shade))
            image.save(place / "photos" / name / f"{i}.png")
    for i in range(2):
        settings = peft.LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["classifier"], init_lora_weights=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = peft.get_peft_model(copy.deepcopy(base), settings)
            network.save_pretrained(place / f"lora-{i}")
    return place


@pytest.fixture
def bella(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bella", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


def fit(place, out, *more):
    return (
        *("fit", "--data", place / "photos", "--network", f"hf:{place / 'vit'}", "--out", out),
        *("--from-adapters", f"{place / 'lora-0'},{place / 'lora-1'}"),
        *("--epochs", 1, "--batch-size", 4, "--learning-rate", "1e-5", "--quiet", *more),
    )


def test_a_run_starts_as_adapters_and_leaves_as_adapters(bella, place, tmp_path):
    run = tmp_path / "run"
    status, _, said = bella(*fit(place, run))
    assert status == 0, said
    asked = yaml.safe_load((run / "config.yaml").read_text())
    assert asked["particles"] == 2
    assert asked["head_init"] == "copy"
    assert "rank" not in asked

    opened = open_run(run, device="cpu")
    layers = opened.posterior.layers()
    theirs = peft.PeftModel.from_pretrained(
        transformers.ViTForImageClassification.from_pretrained(place / "vit"), place / "lora-1"
    ).state_dict()
    for name, layer in layers.items():
        if hasattr(layer, "A"):  # a step of 1e-5 is not far
            start = theirs[f"base_model.model.{name}.lora_A.default.weight"]
            torch.testing.assert_close(layer.A[1], start, rtol=0, atol=1e-3)

    x = torch.randn(2, 3, 16, 16)
    status, out, said = bella(
        "export", run, "--format", "peft", "--out", tmp_path / "out", "--check"
    )
    assert status == 0, said
    assert [line.rpartition("/")[2] for line in out.splitlines()] == [
        *("particle-0", "particle-1", "soup")
    ]
    config = json.loads((tmp_path / "out" / "soup" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "vit")
    with torch.no_grad():
        found = opened.posterior(x).logits
        for i in range(2):
            base = transformers.ViTForImageClassification.from_pretrained(place / "vit")
            network = peft.PeftModel.from_pretrained(
                base, tmp_path / "out" / f"particle-{i}"
            ).eval()
            torch.testing.assert_close(network(x).logits, found[i], rtol=1e-5, atol=1e-5)

    status, _, said = bella("export", run, "--format", "hub", "--out", tmp_path / "card")
    assert status == 0, said
    assert "accuracy" in (tmp_path / "card" / "README.md").read_text()
    again = open_run(tmp_path / "card", device="cpu").posterior
    with torch.no_grad():
        assert torch.equal(again(x).logits, found)

    # The same configuration says the same run; other adapters are another.
    status, _, said = bella("fit", "--config", run / "config.yaml", "--out", run, "--quiet")
    assert status == 0, said
    other = fit(place, run)
    swapped = f"{place / 'lora-1'},{place / 'lora-0'}"
    other = tuple(swapped if str(x).endswith("lora-1") else x for x in other)
    status, _, said = bella(*other)
    assert status == 2
    assert "another run" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rank", 2), "rank is decided by the 2 adapters"),
        (("--target-modules", "q_proj"), "target_modules is decided"),
        (("--option", "rslora=true"), "rslora is decided"),
        (("--particles", 3), "particles is decided"),
        (("--heads", "probe"), "head_init is decided"),
        (("--method", "ssvi"), "from_adapters is for the methods low-rank and laplace"),
        (("--method", "laplace"), "one particle"),
        (("--from-adapters", "nowhere"), "adapter_config.json is missing"),
    ],
)
def test_what_adapters_decide_is_no_setting(bella, place, tmp_path, more, words):
    status, _, said = bella(*fit(place, tmp_path / "run", *more))
    assert status == 2
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--format", "peft", "--particle", 1), "--particle is no option of --format peft"),
        (("--format", "network", "--check"), "--check is no option"),
        (("--format", "hub", "--soup", "none"), "--soup is no option"),
        (("--push", "me/x"), "--push is no option"),
    ],
)
def test_options_of_another_format_are_refused(bella, place, tmp_path, more, words):
    status, _, said = bella("export", tmp_path, "--out", tmp_path / "out", *more)
    assert status == 2
    assert words in said
