"""The checkpoint's file: no pickle, whole, and checked before it is used."""

from __future__ import annotations

import math
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from fit_cases import make, problem, state_of
from safetensors.torch import load_file

import bella
from bella.errors import BellaError
from bella.sealed import write_sealed
from bella.training.checkpoint import CHECKPOINT, PICKLED, _State, read_checkpoint, write_checkpoint

CPU = torch.device("cpu")


SETTINGS = {"epochs": 2, "batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, which nobody changes."""
    folder = tmp_path_factory.mktemp("trained")
    bella.fit(make(), problem(), validation=problem(seed=1), folder=folder, **SETTINGS)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it to damage, and how it was trained."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path, SETTINGS


def go_on(folder, settings):
    """Ask for one epoch more, so that what the checkpoint holds is used and not only read."""
    more = settings | {"epochs": settings["epochs"] + 1}
    return bella.fit(make(), problem(), validation=problem(seed=1), folder=folder, **more)


def test_nested_states_come_back_with_their_types(tmp_path):
    weight = torch.randn(4, 3)
    state = {
        "identity": {"settings": {"a": 1, "b": (0.9, 0.999), "c": None, "d": [True, "x"]}},
        "finished": False,
        "epoch": 1,
        "step": 3,
        "own": {"w": weight, "view": weight[1:], "turned": weight.mT},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "schedule": {},
        "move": {"steps": np.int64(4)},
        "movers": [{"steps": 4}],
        "passes": {"folding": "auto", "plans": {}},
        "particles_per_pass": None,
        "best": (0.5, 0, {"w": weight, "view": weight[1:], "turned": weight.mT}),
        "history": [{"epoch": 1, "loss": math.inf, "other": math.nan}],
        "trace": [],
        "seconds": 1.25,
    }
    write_checkpoint(tmp_path, state)
    found = read_checkpoint(tmp_path, state["identity"], CPU)
    for name in ("w", "view", "turned"):
        assert torch.equal(found["own"][name], state["own"][name])
    assert torch.equal(found["best"][2]["w"], weight)
    assert found["optimizer"]["state"][0]["step"].shape == ()
    assert math.isnan(found["history"][0]["other"])
    assert found["history"][0]["loss"] == math.inf
    for name in ("identity", "finished", "epoch", "step", "schedule", "move", "movers", "passes"):
        assert found[name] == state[name]
        assert type(found[name]) is type(state[name])
    assert (found["seconds"], found["trace"]) == (1.25, [])
    assert isinstance(found["identity"]["settings"]["b"], tuple)


def test_the_file_is_no_pickle_and_any_reader_of_safetensors_opens_it(run):
    folder, _ = run
    # Which of the two depends on the file's first byte, of a length.
    with pytest.raises((pickle.UnpicklingError, ValueError)):
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
    assert (folder / CHECKPOINT).exists()
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


def inside(name, **entries):
    return lambda state: state[name].update(entries)


def plans(change):
    """Change every plan of passes that the run has."""

    def changed(state):
        kept = list(state["passes"]["plans"].values())
        assert kept
        for plan in kept:
            change(plan)

    return changed


def moments(**entries):
    return lambda state: [held.update(entries) for held in state["optimizer"]["state"].values()]


def group(**entries):
    return lambda state: [held.update(entries) for held in state["optimizer"]["param_groups"]]


ENTRIES = tuple(name for name, field in _State.model_fields.items() if field.is_required())

CHANGES = {
    **{f"without {n}": drop(n) for n in ENTRIES},
    **{
        f"{n} a number": put(**{n: 5})
        for n in ENTRIES
        if n not in ("step", "seconds", "particles_per_pass")
    }
    | {"epoch a number": put(epoch=5), "seconds a text": put(seconds="5")},
    "epoch -1": put(epoch=-1),
    "epoch text": put(epoch="1"),
    "epoch far": put(epoch=10**9),
    "step far": put(step=10**400),
    "own a list": put(own=[]),
    "own numbers": lambda state: state["own"].update(dict.fromkeys(state["own"], 5)),
    "own NaN": lambda state: [v.fill_(math.nan) for v in state["own"].values()],
    "own of another shape": lambda state: state["own"].update(
        {name: value[:1] for name, value in state["own"].items()}
    ),
    "own of another dtype": lambda state: state["own"].update(
        {name: value.to(torch.complex64) for name, value in state["own"].items()}
    ),
    "own under other names": lambda state: state.update(
        own={f"{name}x": value for name, value in state["own"].items()}
    ),
    "identity empty": put(identity={}),
    "identity without its settings": inside("identity", settings=None),
    "identity of another network": inside("identity", network="0"),
    "identity of more epochs": lambda state: state["identity"]["settings"].update(epochs="9"),
    "identity of fewer epochs": lambda state: state["identity"]["settings"].update(epochs=1),
    "not finished": put(finished=False),
    "optimizer empty": put(optimizer={}),
    "optimizer without groups": inside("optimizer", param_groups=[]),
    "moments of another shape": moments(exp_avg=torch.zeros(2)),
    "moments that are numbers": moments(exp_avg_sq=1.0),
    "moments without one": lambda state: [
        held.pop("exp_avg") for held in state["optimizer"]["state"].values()
    ],
    "moments without a step": lambda state: [
        held.pop("step") for held in state["optimizer"]["state"].values()
    ],
    "moments NaN": lambda state: [
        held["exp_avg_sq"].fill_(math.nan) for held in state["optimizer"]["state"].values()
    ],
    "a step before the first": moments(step=torch.tensor(-3.0)),
    "moments of a parameter too many": lambda state: state["optimizer"]["state"].update({99: {}}),
    "moments by name": lambda state: state["optimizer"]["state"].update(x={}),
    "learning rate a text": group(lr="0.1"),
    "learning rate NaN": group(lr=math.nan),
    "betas a number": group(betas=0.9),
    "betas of one": group(betas=(0.9,)),
    "a flag a number": group(amsgrad=1),
    "groups of other parameters": group(params=[0, 0]),
    "groups without a rate": lambda state: state["optimizer"]["param_groups"][0].pop("lr"),
    "best late": lambda state: state.update(best=(0.0, 99, state["own"])),
    "best NaN": lambda state: state.update(best=(math.nan, 0, state["own"])),
    "best of other particles": put(best=(0.0, 0, {"x": torch.zeros(1)})),
    "best without a shape": lambda state: state.update(
        best=(0.0, 0, {name: value[:1] for name, value in state["own"].items()})
    ),
    "best of text": put(best=("a", 0, {})),
    "history short": put(history=[]),
    "history of text": put(history=["a", "b"]),
    "history of texts": lambda state: [row.update(loss="x") for row in state["history"]],
    "history of lists": lambda state: [row.update(loss=[1]) for row in state["history"]],
    "history without epochs": lambda state: [row.pop("epoch") for row in state["history"]],
    "history backwards": lambda state: state["history"].reverse(),
    "trace of text": put(trace=["a"]),
    "no particle a pass": put(particles_per_pass=0),
    "seconds nan": put(seconds=math.nan),
    "schedule a list": put(schedule=[]),
    "schedule that is no schedule": inside("schedule", step=5),
    "schedule of text": inside("schedule", last_epoch="x"),
    "schedule of more groups": inside("schedule", base_lrs=[0.1] * 9),
    "move of text": inside("move", steps="x"),
    "move before the first": inside("move", steps=-1),
    "move without steps": put(move={}),
    "a mover too many": put(movers=[{"steps": 1}]),
    "passes empty": put(passes={}),
    "passes folded otherwise": inside("passes", folding="x"),
    "passes folded by a list": inside("passes", folding=[]),
    "passes never folded": inside("passes", folding="never"),
    "plans a list": inside("passes", plans=[]),
    "plans of numbers": lambda state: state["passes"].update(plans={"x": 5}),
    "plans empty": lambda state: state["passes"].update(plans={"x": {}}),
    "a plan of more": plans(lambda plan: plan.update(more=1)),
    "a plan of another way": plans(lambda plan: plan.update(how="sideways")),
    "a plan with text for roles": plans(lambda plan: plan.update(inputs="0")),
    "a plan with roles of text": plans(lambda plan: plan.update(outputs=["0"])),
    "a plan with far roles": plans(lambda plan: plan.update(inputs=[10**40])),
    "a plan with a flag for a role": plans(lambda plan: plan.update(inputs=[True])),
    "a plan whose layers are a list": plans(lambda plan: plan.update(layers=[])),
    "a plan whose layers are numbers": plans(lambda plan: plan.update(layers={"head": 5})),
    "a plan of unknown layers": plans(
        lambda plan: plan.update(layers={f"{name}x": held for name, held in plan["layers"].items()})
    ),
    "a plan without places": plans(lambda plan: plan.update(how="shared", places=None)),
    "a plan of unknown places": plans(
        lambda plan: plan["places"] and plan["places"].update(entrance="nowhere")
    ),
    "a plan of more inputs": plans(lambda plan: plan.update(inputs=[0, 0])),
    "a plan with an axis that inputs lack": plans(lambda plan: plan.update(inputs=[7])),
    "a plan with others of text": plans(lambda plan: plan.update(others=["x"])),
}


def held(posterior):
    return {name: value.clone() for name, value in posterior.state_dict().items()}


@pytest.mark.parametrize("change", CHANGES)
def test_states_that_no_run_has_are_refused_though_their_checksum_is_right(run, change):
    folder, settings = run
    state = state_of(folder)
    CHANGES[change](state)
    write_checkpoint(folder, state)
    with pytest.raises(BellaError) as caught:
        go_on(folder, settings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_state_that_the_changes_begin_with_goes_on(run):
    """Else the changes above were refused for another reason."""
    folder, settings = run
    write_checkpoint(folder, state_of(folder))
    assert len(go_on(folder, settings).history) == 3


ODD = (None, True, -1, 0, 2, 10**12, 10**40, 1e300, math.nan, "", "x", "0", [], {}, [[]], [1], ())


def forge(rng, state):
    """One entry of a state, however deep, becomes another, goes, or gets another name."""
    place = state
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.9:
            place = place[key]
            continue
        break
    how = rng.random()
    if how < 0.8 or isinstance(place, list):
        place[key] = rng.choice(ODD)
    elif how < 0.9:
        del place[key]
    else:
        place[f"{key}x"] = place.pop(key)


def go_on_from_forgeries(run, seeds):
    folder, settings = run
    whole = (folder / CHECKPOINT).read_bytes()
    outcomes = {"refused": 0, "done": 0}
    wrong = []
    for seed in seeds:
        (folder / CHECKPOINT).write_bytes(whole)
        state = state_of(folder)
        forge(random.Random(seed), state)
        write_checkpoint(folder, state)
        try:
            history = go_on(folder, settings).history
            assert [row["epoch"] for row in history] == [1, 2, 3]
            outcomes["done"] += 1
        except BellaError as error:
            outcomes["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                wrong.append(f"{seed}: {str(error)[:200]!r}")
        except Exception as error:
            wrong.append(f"{seed}: {type(error).__name__} {error}"[:300])
    assert not wrong, "\n".join(wrong)
    assert outcomes["refused"] > outcomes["done"]


@pytest.mark.filterwarnings("ignore")  # such as: these particles run one after another
def test_forged_states_end_in_one_sentence_or_in_a_run(run):
    go_on_from_forgeries(run, range(60))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_forged_states(run):
    go_on_from_forgeries(run, range(100, 700))


@pytest.mark.parametrize("change", ["moments NaN", "a mover too many", "passes empty"])
def test_a_refused_checkpoint_changes_no_particle(run, change):
    folder, settings = run
    state = state_of(folder)
    CHANGES[change](state)
    write_checkpoint(folder, state)
    posterior = make()
    before = held(posterior)
    more = settings | {"epochs": 3}
    with pytest.raises(BellaError):
        bella.fit(posterior, problem(), validation=problem(seed=1), folder=folder, **more)
    after = posterior.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "packed", [None, 5, [], {"pairs": 5}, {"tensor": "none"}, {"a": 1, "b": 2}, {"float": "x"}]
)
def test_records_that_are_no_state_are_refused(tmp_path, packed):
    write_sealed(tmp_path / CHECKPOINT, {}, {"state": packed})
    with pytest.raises(BellaError, match="damaged"):
        read_checkpoint(tmp_path, {}, CPU)
