"""Runs that stop in the middle of an epoch and go on to the bits of one that did not."""

from __future__ import annotations

import functools
import os
import random
import resource
import shutil
import signal
import threading

import numpy as np
import pytest
import torch
from fit_cases import Blocks, assert_same, fit, make, problem, state_of
from torch.utils.data import DataLoader, Dataset, Sampler

import bella
from bella.errors import Terminated
from bella.training.checkpoint import CHECKPOINT, write_checkpoint
from bella.training.step import Step

x, y = problem()


class Augmented(Dataset):
    """Draws from all three generators of the process that reads it."""

    def __len__(self):
        return len(x)

    def __getitem__(self, index):
        noise = random.gauss(0, 0.1) + float(np.random.normal(0, 0.1))
        return x[index] + noise + 0.1 * torch.randn(4), y[index]


class Draws(Sampler):
    """Draws from the process's random numbers as it goes, between the steps."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return (int(torch.randint(self.count, ())) for _ in range(self.count))


def stop_in(monkeypatch, step, number=signal.SIGINT, times=1):
    """Send a signal while a step runs, as a terminal or a cluster does."""
    original = Step.__call__

    def called(self, batches):
        loss = original(self, batches)
        if self.number == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return loss

    monkeypatch.setattr(Step, "__call__", called)


def stopped(monkeypatch, step, folder, data=None, network=None, **options):
    """A run that is stopped in a step."""
    with monkeypatch.context() as patched:
        stop_in(patched, step)
        with pytest.raises(KeyboardInterrupt):
            fit(make(network=network), data, folder=folder, **options)


CASES = {
    "repulsive": {},
    "svgd": {"transport": "svgd"},
    "function": {"transport": "function"},
    "accumulated": {"accumulate": 2, "batch_size": 4},
    "own minibatches": {"minibatches": "own"},
    "two a pass": {"particles_per_pass": 2},
    "validated": {"validation": problem(seed=1), "patience": 3},
    "the last kept": {"validation": problem(seed=1), "keep": "last"},
}


WHERE = [("repulsive", step) for step in (1, 5, 6, 18)]
WHERE += [("validated", 6), *((name, 8) for name in CASES)]


def network_of(name):
    return Blocks(0.0 if name == "function" else 0.3)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run of a case that nobody stops, made once: its particles, record and folder."""

    @functools.cache
    def run(name):
        whole, folder = make(network=network_of(name)), tmp_path_factory.mktemp("whole")
        return whole, fit(whole, folder=folder, **CASES[name]), folder

    return run


@pytest.mark.parametrize(("name", "step"), WHERE)
def test_it_goes_on_to_the_same_bits(tmp_path, monkeypatch, uninterrupted, name, step):
    options = CASES[name]
    whole, expected, folder = uninterrupted(name)
    stopped(monkeypatch, step, tmp_path / "two", network=network_of(name), **options)
    assert state_of(tmp_path / "two")["step"] == step
    again = make(network=network_of(name))
    record = fit(again, folder=tmp_path / "two", **options)
    assert_same(whole, again)
    assert (record.history, record.trace) == (expected.history, expected.trace)
    assert record.best_epoch == expected.best_epoch
    for one in ("posterior.safetensors", "history.csv"):
        assert (tmp_path / "two" / one).read_bytes() == (folder / one).read_bytes()


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_goes_on_where_it_was(tmp_path, monkeypatch, workers):
    data = DataLoader(Augmented(), batch_size=8, shuffle=True, num_workers=workers)
    whole, again = (make(network=Blocks(0.3)) for _ in range(2))
    fit(whole, data, epochs=2)
    stopped(monkeypatch, 9, tmp_path, data, Blocks(0.3), epochs=2)
    fit(again, data, folder=tmp_path, epochs=2)
    assert_same(whole, again)


def test_stops_of_stops_and_checkpoints_change_no_bit(tmp_path, monkeypatch):
    whole, again = (make(network=Blocks(0.3)) for _ in range(2))
    expected = fit(whole)
    for step in (2, 3, 4, 11, 13):
        stopped(
            monkeypatch, step, tmp_path, network=Blocks(0.3), checkpoint_every=5, keep_checkpoints=2
        )
    record = fit(again, folder=tmp_path, checkpoint_every=1)
    assert_same(whole, again)
    assert record.history == expected.history
    assert record.trace == expected.trace


def test_a_sampler_that_cannot_go_on_is_told_of(tmp_path, monkeypatch):
    from torch.utils.data import TensorDataset

    data = DataLoader(TensorDataset(x, y), batch_size=8, sampler=Draws(48))
    options = {"cache_prefix": False, "transport_options": {"data_size": 48}}
    stopped(monkeypatch, 4, tmp_path, data, Blocks(0.3), **options)
    with pytest.warns(UserWarning, match="come in another order than in the run that was stopped"):
        fit(make(network=Blocks(0.3)), data, folder=tmp_path, **options)


@pytest.fixture
def plain_signals():
    """As in a script; a test that runs the command in this process leaves its own answer."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_with_its_own_status_and_says_how_to_go_on(
    tmp_path, monkeypatch, capsys, plain_signals
):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_in(monkeypatch, 8, signal.SIGTERM)
    with pytest.raises(Terminated) as ended:
        fit(make(), folder=tmp_path / "run")
    assert ended.value.code == 143
    said = capsys.readouterr().err
    assert said == (
        f"bella: stopped in epoch 2 after 2 of its 6 steps, which {tmp_path / 'run'} holds: the "
        "same call goes on from there.\n"
    )
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_who_answers_a_signal_by_himself_keeps_it(tmp_path, monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        stop_in(monkeypatch, 3, signal.SIGTERM)
        record = fit(make(), folder=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]
    assert len(record.history) == 3


def test_a_second_stop_leaves_the_step_and_saves_nothing_torn(tmp_path, monkeypatch):
    stop_in(monkeypatch, 9, times=2)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), folder=tmp_path)
    assert state_of(tmp_path)["step"] == 6  # of the epoch before
    assert state_of(tmp_path)["position"] is None


def test_without_a_folder_ctrl_c_is_python_s_own(monkeypatch):
    stop_in(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt):
        fit(make())


def test_in_a_thread_signals_stay_with_the_main_one(tmp_path):
    records = []
    thread = threading.Thread(target=lambda: records.append(fit(make(), folder=tmp_path)))
    thread.start()
    thread.join()
    assert len(records[0].history) == 3


def test_a_run_that_begins_anew_and_stops_early_leaves_the_old_one(tmp_path, monkeypatch):
    fit(make(), folder=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stopped(monkeypatch, 3, tmp_path, resume=False, learning_rate=0.5)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_middle_of_a_first_epoch_can_be_used(tmp_path, monkeypatch):
    stopped(monkeypatch, 4, tmp_path)
    run = bella.load(tmp_path, Blocks())
    alone = make()
    with monkeypatch.context() as patched:
        stop_in(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            fit(alone)
    assert_same(run, alone)


def test_the_last_so_many_checkpoints_stay(tmp_path, monkeypatch):
    stopped(monkeypatch, 17, tmp_path, checkpoint_every=2, keep_checkpoints=3)
    names = [CHECKPOINT, "checkpoint.1.safetensors", "checkpoint.2.safetensors"]
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == sorted(names)
    steps = []
    for name in names:
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / CHECKPOINT).write_bytes((tmp_path / name).read_bytes())
        steps.append(state_of(tmp_path / "one")["step"])
    assert steps == [17, 16, 14]
    fit(make(), folder=tmp_path)  # keeps one
    assert [p.name for p in tmp_path.glob("checkpoint*")] == [CHECKPOINT]


@pytest.mark.parametrize("cut", [0, 9, 5000])
def test_from_a_damaged_checkpoint_it_goes_on_from_the_one_before(tmp_path, monkeypatch, cut):
    whole, again = make(), make()
    fit(whole)
    stopped(monkeypatch, 17, tmp_path, checkpoint_every=2, keep_checkpoints=3)
    for name in (CHECKPOINT, "checkpoint.1.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
    with pytest.warns(UserWarning, match=r"cannot be read.*goes on from checkpoint\.2"):
        fit(again, folder=tmp_path, keep_checkpoints=3)
    assert_same(whole, again)


def test_diverged_in_the_middle_of_an_epoch_is_told_at_the_next_checkpoint(tmp_path):
    class Breaks(torch.optim.SGD):
        taken = 0

        def step(self, closure=None):
            super().step(closure)
            self.taken += 1
            if self.taken == 8:
                with torch.no_grad():
                    self.param_groups[0]["params"][0][2] = float("inf")

    posterior, expected = make(), make()
    make_it = {"optimizer": lambda groups: Breaks(groups, lr=0.1)}
    with pytest.raises(bella.BellaError, match=r"particle 2\).*those of epoch 1"):
        fit(posterior, folder=tmp_path, checkpoint_every=1, **make_it)
    assert state_of(tmp_path)["step"] == 7  # the last one that is good
    assert_same(bella.load(tmp_path, Blocks()), posterior)
    fit(expected, folder=tmp_path / "one", epochs=1, **make_it)


def test_a_disk_that_is_full_leaves_the_last_good_state(tmp_path):
    whole, again = make(), make()
    fit(whole)
    fit_a_while = {"folder": tmp_path, "checkpoint_every": 2}
    child = os.fork()
    if child == 0:  # the limit cannot be raised again, so another process has it
        status = 1
        try:
            original = Step.__call__

            def called(self, batches):
                if self.number == 9:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
                return original(self, batches)

            Step.__call__ = called
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            fit(make(), **fit_a_while)
        except bella.BellaError as error:
            status = 0 if "free some space" in str(error) and "\n" not in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert state_of(tmp_path)["step"] == 8
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".check")]
    fit(again, **fit_a_while)
    assert_same(whole, again)


def test_a_folder_that_vanishes_ends_the_run_and_goes_on_where_it_is(tmp_path, monkeypatch):
    whole, again = make(), make()
    fit(whole)
    original = Step.__call__

    def called(self, batches):
        if self.number == 9:
            (tmp_path / "run").rename(tmp_path / "moved")
        return original(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Step, "__call__", called)
        with pytest.raises(bella.BellaError, match="was moved or removed while its run went on"):
            fit(make(), folder=tmp_path / "run", checkpoint_every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert state_of(tmp_path / "moved")["step"] == 8
    fit(again, folder=tmp_path / "moved")
    assert_same(whole, again)


POSITIONS = {
    "no mapping": 5,
    "no steps": {"steps": 0},
    "too many steps": {"steps": 7},
    "half a step": {"steps": 1.5},
    "labels that count less than nothing": {"count": -1.0},
    "labels of numbers": {"labels": 5},
    "a total of text": {"total": "x"},
    "no drawn": {"drawn": 5},
    "torch of zeros": {"drawn": {"torch": [torch.zeros(5056, dtype=torch.uint8)]}},
    "torch cut": {"drawn": {"torch": [torch.zeros(7, dtype=torch.uint8)]}},
    "python cut": {"drawn": {"python": [3, torch.arange(9), None]}},
    "numpy beyond its words": {
        "drawn": {"numpy": ["MT19937", torch.arange(624), 10**6, 0, 0.0]},
    },
    "numpy of another kind": {"drawn": {"numpy": ["PCG64", torch.arange(624), 1, 0, 0.0]}},
    "a log of texts": {"log": {"a": "x"}},
    "processes of numbers": {"apart": [[1, 2]]},
}


@pytest.fixture(scope="module")
def in_the_middle(tmp_path_factory):
    """A run that was stopped in the middle of an epoch, which nobody changes."""
    folder = tmp_path_factory.mktemp("middle")
    with pytest.MonkeyPatch.context() as patch:
        stopped(patch, 9, folder)
    return folder


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_that_no_run_has_are_refused(in_the_middle, tmp_path, name):
    shutil.copytree(in_the_middle, tmp_path, dirs_exist_ok=True)
    state, change = state_of(tmp_path), POSITIONS[name]
    if isinstance(change, dict):
        drawn = change.get("drawn")
        more = {"drawn": state["position"]["drawn"] | drawn} if isinstance(drawn, dict) else {}
        state["position"] |= change | more
    else:
        state["position"] = change
    write_checkpoint(tmp_path, state)
    drawn = torch.get_rng_state()
    posterior = make()
    start = {key: value.clone() for key, value in posterior.state_dict().items()}
    with pytest.raises(bella.BellaError) as caught:
        fit(posterior, folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, start[key]) for key, value in posterior.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
