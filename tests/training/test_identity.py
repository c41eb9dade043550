"""Which run a folder's run is: what may change while it goes on, what may not, what is left."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from fit_cases import Blocks, assert_same, fit, make, problem, state_of
from helpers import mlp
from own_images import write_images
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import bella
from bella.data import ImageFolder, Preprocess
from bella.training.checkpoint import write_checkpoint
from bella.training.fit import Run
from bella.training.identity import fingerprint_data


def test_of_another_kind_its_kind_alone_is_told(tmp_path):
    fit(make(), folder=tmp_path, epochs=1)
    with pytest.raises(bella.BellaError, match="posterior kind was low_rank, now full") as told:
        fit(bella.full(Blocks(), 2, start_std=0.1), folder=tmp_path, epochs=1)
    assert "posterior rank" not in str(told.value)
    assert "posterior start_std" not in str(told.value)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_base():
    network = Blocks()
    with torch.no_grad():
        network.blocks[0][0].weight.add_(1e-6)
    return network


x, y = problem()


SAME = {"epochs": 2, "validation": problem(seed=1), "identity": {"classes": ["a", "b"]}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, which nobody changes."""
    folder = tmp_path_factory.mktemp("trained")
    fit(make(), folder=folder, **SAME)
    return folder


@pytest.mark.parametrize(
    ("built", "asked", "said"),
    [
        ({"network": other_base()}, {}, "network"),
        ({"alpha": 16.0}, {}, "posterior alpha was None, now 16.0"),
        ({"gain": 3.0}, {}, "posterior gain was 1.0, now 3.0"),
        ({"b_std": 0.2}, {}, "posterior b_std"),
        ({"seed": 1}, {}, "posterior seed"),
        ({}, {"data": (x, 2 - y)}, "training data"),
        ({}, {"data": (x[:40], y[:40])}, "training data"),
        ({}, {"data": DataLoader(TensorDataset(x, y), batch_size=4)}, "training data"),
        ({}, {"validation": problem(seed=2)}, "validation data"),
        ({}, {"optimizer": lambda p: torch.optim.SGD(p, lr=0.02)}, "optimizer kind was AdamW"),
        ({}, {"transport": "svgd"}, "transport was repulsive, now svgd"),
        ({}, {"transport_options": {"temperature": 2.0}}, "transport_options temperature"),
        ({}, {"epochs": 1}, "epochs was 2, now 1"),
        ({}, {"identity": {"classes": ["b", "a"]}}, r"classes was \['a', 'b'\], now \['b', 'a'\]"),
    ],
)
def test_what_decides_a_run_cannot_change(trained, tmp_path, built, asked, said):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    same = SAME | {"folder": tmp_path}
    before = content(tmp_path)
    with pytest.raises(bella.BellaError, match=said) as caught:
        fit(make(**built), **(same | asked))
    assert "--fresh" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before
    fit(make(), **same)  # and the run itself goes on


def test_patience_and_where_a_cache_lies_may_change(tmp_path):
    fit(make(), folder=tmp_path, epochs=2, validation=problem(seed=1))
    fit(make(), folder=tmp_path, epochs=2, validation=problem(seed=1), patience=1, cache_bytes=0)


def test_another_version_and_an_unknown_past_are_refused(tmp_path, monkeypatch):
    fit(make(), folder=tmp_path, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(bella, "__version__", "99.0")
        with pytest.raises(bella.BellaError, match=r"version of bella was .*, now 99.0"):
            fit(make(), folder=tmp_path, epochs=1)
    state = state_of(tmp_path)
    del state["identity"]
    write_checkpoint(tmp_path, state)
    with pytest.raises(bella.BellaError, match=r"identity.*Begin the run anew"):
        fit(make(), folder=tmp_path, epochs=1)
    fit(make(), folder=tmp_path, epochs=1, resume=False)


@pytest.mark.parametrize("kind", ["full", "rank1", "sparse"])
def test_particles_of_the_networks_own_weights_know_their_start(tmp_path, kind):
    make_one = {
        "full": lambda network: bella.full(network, 2, start_std=0.01),
        "rank1": lambda network: bella.rank1(network, 2),
        "sparse": lambda network: bella.sparse_subspace(network, 0.5, start="network"),
    }[kind]
    fit(make_one(Blocks()), folder=tmp_path, epochs=1)
    with pytest.raises(bella.BellaError, match=r"another run \(network\)"):
        fit(make_one(other_base()), folder=tmp_path, epochs=1)
    fit(make_one(Blocks()), folder=tmp_path, epochs=1)


def test_a_fresh_head_of_every_particle_is_no_part_of_the_network(tmp_path):
    """It is the checkpoint's: who makes the network anew need not have seeded its head."""

    def anew():
        network = mlp(dtype=torch.float32)
        nn.init.normal_(network[2].weight)
        return bella.low_rank(network, 2, 2, ("0",), modules_to_save=("2",))

    one, two = anew(), anew()
    fit(one, folder=tmp_path, epochs=1)
    fit(two, folder=tmp_path, epochs=1)
    assert_same(one, two)


# ---------------------------------------------------------------- more epochs


def test_a_finished_run_goes_on_for_more_epochs(tmp_path):
    short = fit(make(), folder=tmp_path, epochs=2)
    long = fit(make(), folder=tmp_path, epochs=4)
    assert [row["epoch"] for row in long.history] == [1, 2, 3, 4]
    assert long.history[:2] == short.history
    whole = fit(make(), epochs=4)
    # The learning rate is that of a run of four epochs from where it takes up.
    rates = [[row["learning_rate"] for row in run.history[2:]] for run in (long, whole)]
    assert rates[0] == rates[1]
    assert short.history[1]["learning_rate"] == 0
    with pytest.raises(bella.BellaError, match="epochs was 4, now 2"):
        fit(make(), folder=tmp_path, epochs=2)


def test_a_run_that_is_not_finished_is_finished_first(tmp_path, monkeypatch):
    stop_in(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), folder=tmp_path, epochs=3)
    monkeypatch.undo()
    with pytest.raises(bella.BellaError, match="continue it with epochs=3 first"):
        fit(make(), folder=tmp_path, epochs=5)
    fit(make(), folder=tmp_path, epochs=3)
    assert len(fit(make(), folder=tmp_path, epochs=5).history) == 5


# ---------------------------------------------------------------- what is left in the folder


def stop_in(monkeypatch, epoch, error=KeyboardInterrupt):
    original = Run.run_epoch

    def stops(self, number, *rest):
        if number == epoch:
            raise error
        return original(self, number, *rest)

    monkeypatch.setattr(Run, "run_epoch", stops)


def test_an_interrupted_run_can_be_used_as_it_is(tmp_path, monkeypatch):
    wrong = (x, (y + 1) % 3)  # the first epoch is the best on these labels
    whole = fit(make(), folder=tmp_path / "one", epochs=1, validation=wrong, learning_rate=0.1)
    stop_in(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), folder=tmp_path / "two", epochs=9, validation=wrong, learning_rate=0.1)
    run = bella.load(tmp_path / "two", Blocks())
    found = float(bella.predict(run, x).nll(wrong[1]))
    nlls = [row["validation_nll"] for row in state_of(tmp_path / "two")["history"]]
    assert len(nlls) == 2
    assert found == pytest.approx(min(nlls), rel=1e-5)
    assert whole.history


@pytest.mark.parametrize("error", [KeyboardInterrupt, bella.BellaError])
def test_a_fresh_run_that_does_not_get_far_leaves_the_old_one(tmp_path, monkeypatch, error):
    fit(make(), folder=tmp_path, epochs=1)
    before = content(tmp_path)
    stop_in(monkeypatch, 0, error)
    asked = {"folder": tmp_path, "epochs": 2, "learning_rate": 0.5, "resume": False}
    written = []
    with pytest.raises(error):
        fit(make(), before_save=lambda: written.append(1), **asked)
    assert content(tmp_path) == before
    assert not written
    monkeypatch.undo()
    fit(make(), before_save=lambda: written.append(1), **asked)
    assert written == [1]


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ((x, torch.full_like(y, 7)), {}),
        (None, {"transport": "repulsiv"}),
        (None, {"epochs": 0}),
        (None, {"optimizer": lambda p: torch.optim.SGD(p, lr=1e30), "clip": None}),
    ],
)
@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_is_refused_writes_nothing(tmp_path, data, options, resume):
    with pytest.raises(bella.BellaError):
        fit(make(), data, folder=tmp_path / "run", resume=resume, **({"epochs": 2} | options))
    assert not (tmp_path / "run").exists()
    fit(make(), folder=tmp_path / "run", epochs=1)
    before = content(tmp_path / "run")
    with pytest.raises(bella.BellaError):
        fit(make(), data, folder=tmp_path / "run", resume=resume, **({"epochs": 2} | options))
    assert content(tmp_path / "run") == before


# ---------------------------------------------------------------- data


class Named(Dataset):
    classes = ("a", "b")

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        raise AssertionError("no example is read to know a data set")


def test_data_are_known_by_what_they_hold():
    known = [
        TensorDataset(x, y),
        TensorDataset(x.clone(), y.clone()),  # the same
        TensorDataset(x, y.flip(0)),
        TensorDataset(x.double(), y),
        Subset(TensorDataset(x, y), range(8)),
        Subset(TensorDataset(x, y), range(8, 16)),
        [{"pixels": x[0], "labels": 1}],
        [{"pixels": x[0], "labels": 2}],
        DataLoader(TensorDataset(x, y), batch_size=4),
        DataLoader(TensorDataset(x, y), batch_size=8),
        DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True),
        Named([0, 1]),
        Named([1, 0]),
        x.numpy(),
    ]
    found = [fingerprint_data(data) for data in known]
    assert found[0] == found[1]
    assert len(set(found)) == len(found) - 1
    assert fingerprint_data(None) is None


def test_images_are_known_by_names_labels_and_sizes(tmp_path):
    root = write_images(tmp_path / "images")

    def found(place=root, size=8):
        return fingerprint_data(ImageFolder(place, Preprocess(size)))

    first = found()
    os.rename(root, tmp_path / "moved")
    assert found(tmp_path / "moved") == first
    os.rename(tmp_path / "moved", root)
    assert found(size=9) != first
    (root / "day" / "00.png").write_bytes((root / "day" / "00.png").read_bytes() + b"\0")
    assert found() != first
    second = found()
    os.rename(root / "day", root / "dawn")
    assert found() != second


def test_large_tensors_are_known_by_a_part(monkeypatch):
    monkeypatch.setattr("bella.training.identity.WHOLE", 64)
    other = x.clone()
    other[-1, -1] += 1
    assert fingerprint_data(x) == fingerprint_data(x.clone())
    assert fingerprint_data(x) != fingerprint_data(x + 1)


def test_arrays_of_files_are_told_without_a_warning():
    read = np.frombuffer(bytes(range(12)), np.uint8).reshape(3, 4)
    assert not read.flags.writeable
    assert fingerprint_data(read) == fingerprint_data(read.copy())
    assert fingerprint_data(read.T) != fingerprint_data(read)
