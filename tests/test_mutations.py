"""A saved run, damaged in hundreds of ways: one sentence or the same answer, and never for long.

Damage is drawn from a seed: bits flipped, files cut, grown, mixed up and exchanged, JSON values
replaced, tensors exchanged, left out, cast and spoiled. What is forged together with its checksum
may mean something else, but never ends in another error than a `BellaError`.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
import warnings

import pytest
import torch
from damage import cut, flip, grow, mix
from fit_cases import state_of
from own_images import write_images, write_network
from safetensors.torch import load_file, save_file

from bella.errors import BellaError
from bella.files import sealed
from bella.runs import RunConfig, open_run, train
from bella.sealed import write_sealed
from bella.training.checkpoint import CHECKPOINT, read_checkpoint

pytestmark = pytest.mark.long

FILES = ("posterior.safetensors", "posterior.json", "model.json", CHECKPOINT)
ODD = (None, True, -1, 0, 10**12, 10**40, 1e300, "", "x", "\0", "3", [], {}, [[]], ["x"] * 3, [1])
CONFIG = RunConfig(data="images", particles=2, rank=2, epochs=1, batch_size=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder, and what it answers."""
    root = tmp_path_factory.mktemp("mutations")
    write_images(root / "images", count=6)
    write_network(root / "network")
    places = {"data": str(root / "images"), "network": f"hf:{root / 'network'}"}
    train(CONFIG.model_copy(update=places), root / "run", progress=False)
    return root / "run", answer(root / "run", root), root


def answer(folder, root):
    """Everything that a folder tells: predictions and the state to go on from."""
    predictive = open_run(folder).predict([root / "images"]).predictive
    state = read_checkpoint(folder, state_of(root / "run")["identity"], CPU)
    own = {name: value.clone() for name, value in state["own"].items()}
    return predictive.particle_probs, state["epoch"], state["step"], state["history"], own


def same(one, two):
    return (
        torch.equal(one[0], two[0])
        and one[1:4] == two[1:4]
        and one[4].keys() == two[4].keys()
        and all(torch.equal(one[4][name], two[4][name]) for name in one[4])
    )


# ---------------------------------------------------------------- ways to damage a file


def exchange(rng, path):
    path.write_bytes(path.with_name(rng.choice(FILES)).read_bytes())


def edit_json(rng, path, *, forge=False):
    if path.suffix != ".json":
        path = path.with_name(rng.choice(("posterior.json", "model.json")))
    content = json.loads(path.read_text())
    place = content
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        break
    how = rng.random()
    if how < 0.7 or isinstance(place, list):
        place[key] = rng.choice(ODD)
    elif how < 0.85:
        del place[key]
    else:
        place[f"{key}x"] = place[key]
    if not forge:
        path.write_text(json.dumps(content))
    elif path.name == "model.json":
        content.pop("sha256", None)
        path.write_text(json.dumps(sealed(content)))
    else:
        for entry in ("sha256", "tensors"):
            content.pop(entry, None)
        whole = path.with_name("posterior.safetensors")
        tensors = {name: value.clone() for name, value in load_file(whole).items()}
        path.write_text(json.dumps(write_sealed(whole, tensors, content)))


def edit_tensors(rng, path):
    """Other tensors under the record of the old ones."""
    if path.suffix == ".json":
        path = path.with_name("posterior.safetensors")
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    name, other = rng.sample(sorted(tensors), 2)
    how = rng.randrange(6)
    if how == 0:
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif how == 1:
        del tensors[name]
    elif how == 2:
        tensors[name] = tensors[name].to(rng.choice((torch.float16, torch.int32, torch.complex64)))
    elif how == 3:
        tensors[f"{name}x"] = tensors.pop(name)
    elif how == 4:
        tensors[name] = torch.full_like(tensors[name], rng.choice((math.nan, 1e30)))
    else:
        tensors[name] = tensors[name].flatten()[:1]
    save_file(tensors, path, metadata=header["__metadata__"] if rng.random() < 0.8 else None)


WAYS = (flip, flip, flip, cut, grow, mix, exchange, edit_json, edit_tensors)


def forged(rng, path):
    edit_json(rng, path, forge=True)


def damage(run, tmp_path, seeds, ways, *, may_differ):
    folder, right, root = run
    outcomes = {"refused": 0, "same": 0, "other": 0, "error": 0}
    wrong = []
    for seed in seeds:
        rng = random.Random(seed)
        copied = tmp_path / "run"
        shutil.copytree(folder, copied)
        way, name = rng.choice(ways), rng.choice(FILES)
        way(rng, copied / name)
        begun, outcome = time.perf_counter(), "error"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = answer(copied, root)
            outcome = "same" if same(found, right) else "other"
            if outcome == "other" and not may_differ:
                wrong.append(f"{seed}: {way.__name__} of {name} changed the answer")
        except BellaError as error:
            outcome = "refused"
            if "\n" in str(error) or len(str(error)) > 2000:
                wrong.append(f"{seed}: {way.__name__} of {name}: {str(error)[:200]!r}")
        except Exception as error:
            wrong.append(f"{seed}: {way.__name__} of {name}: {type(error).__name__} {error}"[:300])
        if time.perf_counter() - begun > 20:
            wrong.append(f"{seed}: {way.__name__} of {name} took too long")
        outcomes[outcome] += 1
        shutil.rmtree(copied)
    assert not wrong, "\n".join(wrong)
    assert outcomes["refused"] > 0.7 * len(seeds) or may_differ
    return outcomes


def test_the_undamaged_run_answers_the_same_twice(run):
    folder, right, root = run
    assert same(answer(folder, root), right)


def test_damage_is_refused_or_changes_nothing(run, tmp_path):
    damage(run, tmp_path, range(100), WAYS, may_differ=False)


def test_forgeries_end_in_one_sentence_or_in_an_answer(run, tmp_path):
    damage(run, tmp_path, range(30), (forged,), may_differ=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(5))
def test_fifteen_hundred_ways_to_damage_a_run(run, tmp_path, block):
    damage(run, tmp_path, range(1000 + 300 * block, 1300 + 300 * block), WAYS, may_differ=False)


@pytest.mark.slow
def test_many_forgeries(run, tmp_path):
    damage(run, tmp_path, range(5000, 5400), (forged,), may_differ=True)
