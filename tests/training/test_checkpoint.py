"""The checkpoint's file: no pickle, whole, and checked before it is used."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from fit_cases import make, problem
from safetensors.torch import load_file

import bella
from bella.errors import BellaError
from bella.sealed import read_sealed, write_sealed
from bella.training.checkpoint import CHECKPOINT, PICKLED, read_checkpoint, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path):
    settings = {"epochs": 2, "batch_size": 8, "progress": False}
    bella.fit(make(), problem(), validation=problem(seed=1), folder=tmp_path, **settings)
    record, _ = read_sealed(tmp_path / CHECKPOINT)
    asked = next(value for key, value in record["state"]["pairs"] if key == "settings")
    assert asked
    return tmp_path, settings


def state_of(folder):
    record, tensors = read_sealed(folder / CHECKPOINT)
    from bella.training.checkpoint import _unpacked

    return _unpacked(record["state"], {name: value.clone() for name, value in tensors.items()})


def go_on(folder, settings):
    return bella.fit(make(), problem(), validation=problem(seed=1), folder=folder, **settings)


def test_nested_states_come_back_with_their_types(tmp_path):
    weight = torch.randn(4, 3)
    state = {
        "settings": {"a": 1, "b": (0.9, 0.999), "c": None, "d": [True, "x"]},
        "epoch": 1,
        "step": 3,
        "own": {"w": weight, "view": weight[1:], "turned": weight.mT},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "schedule": {},
        "move": {"steps": np.int64(4)},
        "particles_per_pass": None,
        "best": (0.5, 0, {"w": weight}),
        "history": [{"loss": math.inf, "other": math.nan}],
        "trace": [],
        "seconds": 1.25,
    }
    write_checkpoint(tmp_path, state)
    found = read_checkpoint(tmp_path, state["settings"], CPU)
    for name in ("w", "view", "turned"):
        assert torch.equal(found["own"][name], state["own"][name])
    assert torch.equal(found["best"][2]["w"], weight)
    assert found["optimizer"]["state"][0]["step"].shape == ()
    assert math.isnan(found["history"][0]["other"])
    assert found["history"][0]["loss"] == math.inf
    for name in ("settings", "epoch", "step", "schedule", "move", "seconds", "trace"):
        assert found[name] == state[name]
        assert type(found[name]) is type(state[name])
    assert isinstance(found["settings"]["b"], tuple)


def test_the_file_is_no_pickle_and_any_reader_of_safetensors_opens_it(run):
    folder, _ = run
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((folder / CHECKPOINT).read_bytes())
    assert any(name.endswith("exp_avg") for name in load_file(folder / CHECKPOINT))
    assert not (folder / PICKLED).exists()


def test_what_is_neither_tensor_nor_plain_is_refused_by_name(tmp_path):
    with pytest.raises(BellaError, match=r"move\.held.* is a object"):
        write_checkpoint(tmp_path, {"move": {"held": object()}})
    assert list(tmp_path.iterdir()) == []


def test_a_pickled_checkpoint_is_not_read(run):
    folder, settings = run
    (folder / CHECKPOINT).unlink()
    (folder / PICKLED).write_bytes(b"cos\nsystem\n(S'touch /tmp/no'\ntR.")
    with pytest.raises(BellaError, match="earlier version"):
        go_on(folder, settings)
    go_on(folder, settings | {"resume": False})
    assert not (folder / PICKLED).exists()


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_cut_file_is_refused(run, cut):
    folder, settings = run
    whole = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(whole[:cut])
    with pytest.raises(BellaError, match="--fresh"):
        go_on(folder, settings)


def drop(name):
    return lambda state: state.pop(name)


def put(**entries):
    return lambda state: state.update(entries)


CHANGES = {
    **{f"without {n}": drop(n) for n in ("own", "optimizer", "history", "best", "epoch", "move")},
    "epoch -1": put(epoch=-1),
    "epoch text": put(epoch="1"),
    "epoch far": put(epoch=10**9),
    "own a list": put(own=[]),
    "own numbers": lambda state: state["own"].update(dict.fromkeys(state["own"], 5)),
    "own NaN": lambda state: [v.fill_(math.nan) for v in state["own"].values()],
    "own of another shape": lambda state: state["own"].update(
        {name: value[:1] for name, value in state["own"].items()}
    ),
    "optimizer empty": put(optimizer={}),
    "moments of another shape": lambda state: [
        held.update(exp_avg=torch.zeros(2)) for held in state["optimizer"]["state"].values()
    ],
    "best late": lambda state: state.update(best=(0.0, 99, state["own"])),
    "best a number": put(best=5),
    "history short": put(history=[]),
    "no particle a pass": put(particles_per_pass=0),
    "seconds nan": put(seconds=math.nan),
    "schedule a list": put(schedule=[]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_states_that_no_run_has_are_refused_though_their_checksum_is_right(run, change):
    folder, settings = run
    state = state_of(folder)
    CHANGES[change](state)
    write_checkpoint(folder, state)
    with pytest.raises(BellaError) as caught:
        go_on(folder, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "packed", [None, 5, [], {"pairs": 5}, {"tensor": "none"}, {"a": 1, "b": 2}, {"float": "x"}]
)
def test_records_that_are_no_state_are_refused(tmp_path, packed):
    write_sealed(tmp_path / CHECKPOINT, {}, {"state": packed})
    with pytest.raises(BellaError, match="damaged"):
        read_checkpoint(tmp_path, {}, CPU)
