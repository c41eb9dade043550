"""What rank-1 and SSVI were published on, in small: the same networks on a few images."""

import pytest
import torch
from set_files import write_cifar10

from bella.experiments.compare import compare
from bella.experiments.tasks import task_named

pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


@pytest.mark.parametrize(
    ("name", "millions"), [("cifar10-resnet18", 11.17), ("cifar10-wrn", 36.48)]
)
def test_the_published_networks_read_crops_of_cifar(tmp_path, name, millions):
    write_cifar10(tmp_path, each=20)
    task = task_named(name, tmp_path)
    network = task.open(0).network
    size = sum(p.numel() for p in network.parameters()) / 1e6
    assert size == pytest.approx(millions, abs=0.01)
    first, again = (task.part("train", 0)[0][0] for _ in range(2))
    assert first.shape == (3, 32, 32)
    assert not torch.equal(first, again)  # crops and flips
    assert torch.equal(task.part("test", 0)[0][0], task.part("test", 0)[0][0])
    assert not torch.equal(task.part("corrupted", 0)[0][0], task.part("test", 0)[0][0])


def test_the_divergence_warms_up_over_the_same_share_of_other_epochs(tmp_path):
    write_cifar10(tmp_path, each=3)
    task = task_named("cifar10-resnet18", tmp_path)
    assert task.settings_with({})["kl_warmup"] == 15
    assert task.settings_with({"epochs": 5})["kl_warmup"] == 2
    assert task.settings_with({"epochs": 5, "kl_warmup": 4})["kl_warmup"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"), [("cifar10-resnet18", "ssvi"), ("cifar10-wrn", "rank1")]
)
def test_two_steps(tmp_path, name, method):
    write_cifar10(tmp_path / "data", each=3)
    task = task_named(name, tmp_path / "data")
    results = compare(
        task, [method], seeds=1, folder=tmp_path / "runs", progress=False, epochs=1, batch_size=15
    )
    assert 0 <= results["methods"][method]["figures"]["accuracy"]["mean"] <= 1
