"""The comparison engine on a small task, its tables, words and pictures."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

import bella
from bella.data import Preprocess
from bella.experiments.bench import read_outputs
from bella.experiments.compare import compare, summary
from bella.experiments.methods import METHODS, methods_named
from bella.experiments.methods import trained as engine
from bella.experiments.tasks import task_named
from bella.experiments.tasks.task import Task, fixed
from bella.models import Defaults, Opened
from bella.prediction.predictive import Predictive
from bella.report import pictures
from bella.report.tables import PARTS, markdown_table, rich_table, verdict


class Points(Dataset):
    classes = ("low", "high")

    def __init__(self, count, seed, shift=0.0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 6, generator=generator) + shift
        noise = 0.7 * torch.randn(count, generator=generator)
        self.y = (self.x[:, 0] + noise > shift).long()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Network(nn.Module):
    """``skips``: its input is needed after the blocks, so that no prefix can be shared."""

    def __init__(self, skips=False):
        super().__init__()
        torch.manual_seed(0)
        self.skips = skips
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = x
        for block in self.blocks:
            h = torch.tanh(block(h))
        return self.head(h + x if self.skips else h)


def small_task(skips=False):
    parts = {
        "train": Points(60, 0),
        "validation": Points(40, 1),
        "test": Points(50, 2),
        "far": Points(30, 3, shift=3.0),
    }
    return Task(
        "points",
        "Points",
        lambda seed: Opened(Network(skips), Preprocess(8), Defaults((r"blocks\.2",), ("head",))),
        parts,
        fixed(parts),
        {"shift": "far"},
        {"epochs": 2, "learning_rate": 0.02},
        {"b_std": 0.05},
        rank=2,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    results = compare(small_task(), list(METHODS), seeds=2, folder=folder, progress=False)
    return folder, results


def test_every_method_has_every_figure(ran):
    folder, results = ran
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results["methods"]) == list(METHODS)
    wanted = {
        "accuracy",
        "nll",
        "ece",
        "auroc_shift_mi",
        "nll_shift",
        "trainable",
        "validation_nll",
    }
    for method in results["methods"].values():
        assert wanted <= set(method["figures"])
        assert len(method["figures"]["nll"]["values"]) == 2
    figures = {name: method["figures"] for name, method in results["methods"].items()}
    assert figures["lora"]["trainable"]["mean"] == 2 * (6 + 6) + 14
    assert figures["bella"]["trainable"]["mean"] == 5 * 38
    assert figures["probe"]["trainable"]["mean"] == 14
    assert figures["lora"]["mutual_information"]["mean"] == 0
    assert figures["bella"]["mutual_information"]["mean"] > 0
    cooled = figures["lora+temperature"]["validation_nll"]["values"]
    for one, two in zip(cooled, figures["lora"]["validation_nll"]["values"], strict=True):
        assert one <= two + 1e-6


def test_what_ran_is_not_run_again(ran, monkeypatch):
    folder, results = ran
    monkeypatch.setattr(engine, "fit", None)  # a second training would fail
    again = compare(small_task(), list(METHODS), seeds=2, folder=folder, progress=False)
    assert again["methods"] == results["methods"]


def test_an_interrupted_comparison_goes_on(ran, tmp_path, monkeypatch):
    _, results = ran
    original, trained = engine.fit, []

    def counted(*args, **kwargs):
        trained.append(1)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(engine, "fit", counted)
    chosen = ["lora", "lora-ensemble"]
    with pytest.raises(KeyboardInterrupt):
        compare(small_task(), chosen, seeds=2, folder=tmp_path, progress=False)
    again = compare(small_task(), chosen, seeds=2, folder=tmp_path, progress=False)
    assert len(trained) == 5  # two, one that stopped, and the two that were missing
    for name in chosen:
        for figure in ("nll", "accuracy", "auroc_shift_mi"):
            expected = results["methods"][name]["figures"][figure]
            assert again["methods"][name]["figures"][figure] == expected


def test_other_settings_are_run_anew(ran, monkeypatch):
    folder, _ = ran
    monkeypatch.setattr(engine, "fit", None)
    with pytest.raises(TypeError):
        compare(small_task(), ["lora"], seeds=1, folder=folder, progress=False, epochs=1)


def test_what_a_setting_does_not_touch_is_kept(ran, monkeypatch):
    folder, results = ran
    monkeypatch.setattr(engine, "fit", None)
    # Fine-tuning of all weights has a learning rate of its own, and probes have none.
    names = ["probe", "single", "single+temperature"]
    again = compare(small_task(), names, seeds=2, folder=folder, progress=False, learning_rate=0.5)
    assert all(again["methods"][name] == results["methods"][name] for name in names)


def test_the_soup_is_the_merged_network(ran):
    folder, _ = ran
    task = small_task()
    posterior = bella.load(folder / "runs" / "bella-0" / "posterior", Network())
    logits, labels = read_outputs(folder / "runs" / "soup-0")["test"]
    part = task.pools["test"]
    torch.testing.assert_close(logits[0], posterior.soup()(part.x), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, part.y)


@pytest.mark.filterwarnings("ignore:Nothing is shared")
def test_a_network_without_a_shared_prefix_is_compared_as_well(tmp_path):
    results = compare(
        small_task(skips=True), ["probe", "soup"], seeds=1, folder=tmp_path, progress=False
    )
    posterior = bella.load(tmp_path / "runs" / "bella-0" / "posterior", Network(True))
    part = small_task().pools["test"]
    expected = bella.metrics.accuracy(posterior.soup()(part.x).softmax(-1), part.y)
    assert results["methods"]["soup"]["figures"]["accuracy"]["mean"] == pytest.approx(expected)


def scratch_task():
    return dataclasses.replace(
        small_task(),
        open=lambda seed: Opened(Network(), Preprocess(8), Defaults((), ())),
        pretrained=False,
    )


def test_networks_are_trained_from_scratch_as_well(tmp_path):
    names = ["single", "single+temperature", "ensemble", "svgd", "rank1"]
    names += ["vi", "ssvi", "ssvi-0.05", "vi-bf16", "ssvi-bf16"]
    results = compare(scratch_task(), names, seeds=1, folder=tmp_path, progress=False)
    assert list(results["methods"]) == names
    found = {
        name: {key: figure["mean"] for key, figure in method["figures"].items()}
        for name, method in results["methods"].items()
    }
    size = 3 * 42 + 14
    assert found["single"]["trainable"] == size
    assert found["ensemble"]["trainable"] == 5 * size
    assert found["ensemble"]["mutual_information"] > 0  # members start apart
    assert found["ensemble"]["bytes_on_disk"] == 5 * 4 * size
    # Weights are a mean and a scale in VI; biases are one number.
    weights, biases = 3 * 36 + 12, 3 * 6 + 2
    assert found["vi"]["trainable"] == 2 * weights + biases
    active = 3 * round(0.1 * 36) + round(0.1 * 12)
    assert found["ssvi"]["trainable"] == 2 * active + biases
    assert found["vi-bf16"]["bytes_on_disk"] == found["vi"]["bytes_on_disk"] / 2
    positions = found["ssvi"]["bytes_on_disk"] - 4 * found["ssvi"]["trainable"]
    assert found["ssvi-bf16"]["bytes_on_disk"] == 2 * found["ssvi"]["trainable"] + positions
    assert found["vi-bf16"]["nll"] == pytest.approx(found["vi"]["nll"], abs=0.01)
    assert found["ssvi"]["train_flops_ratio"] > found["vi"]["train_flops_ratio"] == 1


def test_a_method_that_adapts_needs_something_to_adapt(tmp_path):
    for name in ("lora", "probe", "vbl", "soup"):
        with pytest.raises(bella.BellaError, match="from scratch: leave it out"):
            compare(scratch_task(), [name], seeds=1, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["fashion-resnet", "fashion-mlp"])
def test_tasks_from_scratch_open_fresh_networks(task, fashion_folder, monkeypatch):
    module = importlib.import_module("bella.data.fashion_mnist")
    monkeypatch.setattr(module, "FOLDER", fashion_folder)
    found = task_named(task)
    assert set(found.split(0)) == {"train", "validation", "test", "corrupted"}
    one, same, other = (found.open(seed).network.eval() for seed in (0, 0, 1))
    x = found.part("test", 0)[0][0].unsqueeze(0)
    assert one(x).shape == (1, 10)
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))


def test_methods_bring_what_they_start_from():
    assert [m.name for m in methods_named(["soup"])] == ["bella", "soup"]
    with pytest.raises(bella.BellaError, match="'bella'"):
        methods_named(["belle"])
    with pytest.raises(bella.BellaError, match="seeds=0"):
        compare(small_task(), ["lora"], seeds=0, folder="nowhere", progress=False)


def test_figures_that_do_not_exist_are_no_obstacle():
    found = summary([{"a": float("nan"), "b": 1.0}, {"a": 2.0, "b": 3.0}])
    assert found["b"] == {"mean": 2.0, "spread": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert found["a"]["mean"] != found["a"]["mean"]


def made_up(nll):
    def figures(value, spread):
        return {"nll": {"mean": value, "spread": spread, "values": []}}

    return {
        "title": "t",
        "seeds": 3,
        "methods": {
            "lora-ensemble": {"title": "E", "figures": figures(0.5, 0.02)},
            "bella": {"title": "B", "figures": figures(nll, 0.02)},
        },
    }


@pytest.mark.parametrize(
    ("nll", "words"), [(0.4, "better: NLL"), (0.6, "worse: NLL"), (0.53, "within the spread: NLL")]
)
def test_words_say_what_the_figures_say(nll, words):
    assert words in verdict(made_up(nll))[0]
    assert f"| B | {nll:.3f} ±.020 |" in markdown_table(made_up(nll))


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_words_compare_only_what_both_have(nothing):
    results = made_up(0.5)
    ours, other = (results["methods"][name]["figures"] for name in ("bella", "lora-ensemble"))
    ours["auroc_shift_mi"] = {"mean": 0.9, "spread": 0.01, "values": []}
    other["auroc_shift_mi"] = {"mean": 0.5, "spread": 0.0, "values": []}
    assert "better: noticing the shift by mutual information" in verdict(results)[0]
    # One set of weights disputes nothing: older folders hold the .5 that was computed for it.
    other["mutual_information"] = {"mean": 0.0, "spread": 0.0, "values": []}
    assert "mutual information" not in verdict(results)[0]
    del other["mutual_information"]
    other["auroc_shift_mi"]["mean"] = nothing
    assert "mutual information" not in verdict(results)[0]


def test_the_parts_of_a_table_hold_every_figure_once(ran):
    _, results = ran
    console = Console(width=180, record=True)
    console.print(rich_table(results))
    shown = console.export_text()
    for part, columns in PARTS.items():
        assert f"Points, {part}" in shown
        for name, (heading, _) in columns.items():
            assert (f" {heading} " in shown) == ("doubt" not in name)
    assert "…" not in shown
    page = markdown_table(results)
    probe = [line for line in page.splitlines() if line.startswith("| linear probe |")]
    assert len(probe) == len(PARTS)
    assert probe[0].endswith("| - | - | - | - |")  # one set of weights disputes nothing


def test_one_seed_says_nothing_of_differences():
    assert "One seed" in verdict(made_up(0.1) | {"seeds": 1})[0]


class Squares(Dataset):
    def image(self, index):
        return Image.new("L", (20, 20), index * 20)


def test_pictures_open_and_repeat(tmp_path):
    torch.manual_seed(0)
    predictive, labels = Predictive(torch.randn(3, 12, 2)), torch.randint(2, (12,))
    for name in ("one", "two"):
        folder = tmp_path / name
        pictures.extremes(
            folder / "a.png", Squares(), predictive, ["low"] * 12, ("low", "high"), count=3
        )
        pictures.densities(folder / "b.png", {"all": predictive}, "images")
        pictures.reliability(folder / "c.png", {"m": predictive}, labels)
        pictures.distances(folder / "d.png", {"m": [{"step": 1, "distance": 0.5}]})
        pictures.curves(folder / "e.png", [{"epoch": 1, "loss": 0.5, "validation_nll": 0.6}])
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 300
