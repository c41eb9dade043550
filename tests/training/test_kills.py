"""kill -9 while a run goes on: nothing half-written, nothing lost but the last steps, same bits.

A trial is one process that trains and is killed with SIGKILL, at a moment drawn at random or as it
is about to touch a file. The next process goes on in the same folder, and is killed in its turn,
until the run is done; it then has the particles of one that nobody killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest
from fit_cases import Blocks, assert_same, fit, make, state_of
from kill_cases import OPTIONS
from process_cases import start

import bella
from bella.sealed import read_sealed
from bella.training.checkpoint import CHECKPOINT


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run comes to that nobody killed, how often it touches a file, and its seconds."""
    folder = tmp_path_factory.mktemp("kills")
    posterior = make(network=Blocks(0.3))
    record = fit(posterior, folder=folder / "here", **OPTIONS)
    for name in ("first", "run"):  # the first starts the server too, and is not timed
        begun = time.perf_counter()
        (process,) = start(1, "kill_cases", "train", folder / "said", str(folder / name))
        process.join(60)
        seconds = time.perf_counter() - begun
    import torch

    touched = torch.load(folder / "said" / "found-0", weights_only=False)
    assert process.exitcode == 0
    assert_same(bella.load(folder / "run", Blocks()), posterior.eval())
    return posterior, record, touched, seconds


@pytest.fixture
def place(tmp_path):
    """In memory where the system has such a folder: a killed process leaves the same there, and a
    busy disk takes a second to promise a file."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as found:
        yield Path(found)


def killed(folder, rng, touched, seconds):
    """One process that trains and is killed; whether it was before it was done."""
    by_file = rng.random() < 0.5
    crash = rng.randint(1, touched) if by_file else None
    (process,) = start(1, "kill_cases", "train", folder.parent / "said", str(folder), crash)
    if not by_file:
        process.join(rng.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def check_whole(folder):
    """Every file under its own name can be read to its end; returns the step that is reached."""
    for path in folder.glob("[!.]*"):
        if path.suffix == ".safetensors":
            read_sealed(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    return state_of(folder)["step"] if (folder / CHECKPOINT).exists() else 0


def trials(place, whole, seed, count):
    """So many kills; returns how many runs they made, and in how many steps of them."""
    posterior, record, touched, seconds = whole
    rng, done, runs, steps = random.Random(seed), 0, 0, set()
    while done < count:
        folder, reached, finished = place / f"run-{runs}", 0, False
        while done < count and not finished:
            if killed(folder, rng, touched, seconds):
                done += 1
            else:
                finished = True
            if folder.exists():
                now = check_whole(folder)
                assert now >= reached, "the run went back"
                reached = now
                steps.add(now)
        again = make(network=Blocks(0.3))
        found = fit(again, folder=folder, **OPTIONS)
        assert_same(again, posterior)
        assert (found.history, found.trace) == (record.history, record.trace)
        left = [p.name for p in folder.iterdir() if p.name.startswith(".")]
        assert not left, "something of a killed process was left"
        runs += 1
    return runs, steps


def test_twenty_kills(place, whole):
    runs, steps = trials(place, whole, 0, 20)
    assert runs > 1
    assert len(steps) > 2


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_two_hundred_kills(place, whole, block):
    runs, steps = trials(place, whole, 1 + block, 50)
    assert runs > 5
    assert len(steps) > 4
