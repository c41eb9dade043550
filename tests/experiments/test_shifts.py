"""Shifts that are laid upon a task: other images, corruptions, a user's own domains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from own_images import CLASSES, write_images, write_network

import bella
from bella.data import Preprocess, open_images
from bella.data.corruptions import Corruption
from bella.experiments.compare import compare
from bella.experiments.tasks import images_task, with_corruptions, with_other
from bella.experiments.tasks.task import Task
from bella.models import Defaults, Opened
from bella.report.tables import markdown_table
from bella.report.verdict import verdict


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shifts")
    for seed, name in enumerate(("clinic", "lab")):
        write_images(root / "domains" / name, count=8, seed=seed)
    write_images(root / "far", count=3, seed=9)
    write_network(root / "network")
    return root


def small(root, side=32):
    """A task whose seeds split one pool anew."""
    images = open_images(root / "domains" / "clinic", Preprocess(side))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()

    def split(seed):
        turned = order[seed:] + order[:seed]
        return {
            "train": ("all", turned[:8]),
            "validation": ("all", turned[8:11]),
            "test": ("all", turned[11:]),
        }

    def open_it(seed):
        return Opened(torch.nn.Identity(), Preprocess(side), Defaults((), ()))

    return Task("small", "Small", open_it, {"all": images}, split)


def test_other_images_are_parts_with_labels_or_without(root):
    task = with_other(small(root), [root / "far", root / "far" / "day"])
    assert task.shifts == {"far": "far", "day": "day"}
    assert task.part("far", 1).labels == [0, 0, 0, 1, 1, 1]
    assert task.part("day", 1).labels == [-1] * 3
    assert task.words.unscored == ("day",)
    assert with_other(small(root), [root / "far"]).shifts == {"ood": "ood"}
    with pytest.raises(bella.BellaError, match="called 'far'"):
        with_other(small(root), [root / "far", root / "far"])
    (root / "test").mkdir(exist_ok=True)
    with pytest.raises(bella.BellaError, match="called 'test'"):
        with_other(small(root), [root / "far", root / "test"])


def test_corruptions_are_of_each_seed_s_test_images(root):
    pytest.importorskip("imagecorruptions")
    task = with_corruptions(small(root), ["fog", "contrast"], [1, 5], side=96)
    assert list(task.shifts) == ["fog-1", "fog-5", "contrast-1", "contrast-5"]
    for seed in (0, 1):
        clean, fog = task.part("test", seed), task.part("fog-5", seed)
        assert fog.paths == clean.paths
        assert fog.preprocess.corruption == Corruption("fog", 5, side=96)
    assert task.part("fog-5", 0).paths != task.part("fog-5", 1).paths
    with pytest.raises(bella.BellaError, match="at least 96"):
        with_corruptions(small(root), ["fog"], [1])


def test_a_task_without_images_has_no_use_for_any(root):
    points = replace(small(root), pools={"all": torch.utils.data.TensorDataset(torch.zeros(16))})
    with pytest.raises(bella.BellaError, match="holds no images"):
        with_other(points, [root / "far"])
    with pytest.raises(bella.BellaError, match="holds no images"):
        with_corruptions(points, ["fog"], [1])


def test_a_comparison_across_domains_and_other_images(root, tmp_path):
    network = f"hf:{root / 'network'}"
    task = images_task(root / "domains", network, train_domains=["clinic"])
    task = with_other(task, [root / "far"])
    assert task.classes == CLASSES
    results = compare(
        task, ["probe", "probe-ensemble"], seeds=2, folder=tmp_path, progress=False, epochs=1
    )
    assert results["shifts"] == ["lab", "ood"]
    assert "| lab acc |" in markdown_table(results)
    assert {"accuracy", "fpr95_entropy"} <= set(results["methods"]["probe"]["parts"]["ood"])
    assert results["claims"] == []  # nobody is told against a probe by a probe
    assert verdict(results) == []
