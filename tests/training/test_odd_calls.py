"""Calls of `bella.fit` from odd places, and data that the network does not take."""

from __future__ import annotations

import os

import pytest
import torch
from fit_cases import assert_same, fit, make, problem
from torch import nn

import bella

x, y = problem()


class Moves:
    """A mover that does something in its nth step."""

    def __init__(self, do, when=0):
        self.do, self.when, self.number = do, when, 0

    def follow(self, optimizer):
        pass

    def step(self, learning_rate=None):
        if self.number == self.when:
            self.do()
        self.number += 1
        return False

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_gradients_that_are_off_outside_are_on_inside():
    plain, quiet = make(), make()
    fit(plain)
    with torch.no_grad():
        fit(quiet)
        assert not torch.is_grad_enabled()
    assert_same(plain, quiet)


def test_inference_mode_is_refused():
    posterior = make()
    with torch.inference_mode(), pytest.raises(bella.BellaError, match="call it outside"):
        fit(posterior)
    with torch.inference_mode():
        made_inside = make()
    with pytest.raises(bella.BellaError, match=r"was made inside torch.inference_mode"):
        fit(made_inside)


def test_a_network_without_numbers_is_refused():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    posterior = bella.low_rank(network, 2, 2, ("0",))
    with pytest.raises(bella.BellaError, match="meta device"):
        bella.fit(posterior, (x, y), epochs=1, progress=False)


@pytest.mark.parametrize("cache", [False, "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_inputs_of_another_dtype_are_one_sentence(dtype, cache):
    with pytest.raises(bella.BellaError, match=r"does not take the data as they are .*x.float"):
        fit(make(), (x.to(dtype), y), cache_prefix=cache)


def test_another_runtime_error_is_the_networks_own():
    class Broken(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("out of order")

    posterior = bella.low_rank(Broken(nn.Linear(6, 8), nn.Linear(8, 3)), 2, 2, ("0",))
    with pytest.raises(RuntimeError, match="out of order"):
        bella.fit(posterior, (x, y), epochs=1, progress=False)


def test_a_data_frame_is_refused_before_it_is_read():
    class Frame:
        iloc = None

        def __len__(self):
            return 4

        def __getitem__(self, name):
            raise KeyError(name)

    with pytest.raises(bella.BellaError, match="pandas"):
        fit(make(), Frame())


@pytest.mark.parametrize("name", ["epochs", "learning_rate", "batch_size", "clip", "seed"])
def test_true_is_no_number(name):
    with pytest.raises(bella.BellaError, match=f"{name}=True: give a number"):
        fit(make(), **{name: True})


def test_one_hot_labels_say_what_to_give():
    with pytest.raises(bella.BellaError, match="one class number an example"):
        fit(make(), (x, nn.functional.one_hot(y, 3)))


def test_a_folder_that_is_moved_stops_the_run_and_can_be_continued(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    steps = -(-len(x) // 16)
    posterior, away = make(), Moves(lambda: os.rename(folder, moved), when=2 * steps)
    with pytest.raises(bella.BellaError, match="was moved or removed"):
        bella.fit(
            posterior,
            (x, y),
            epochs=4,
            batch_size=16,
            folder=folder,
            movers=[away],
            progress=False,
        )
    assert not folder.exists()
    whole, rest = make(), make()
    for trained, place in ((whole, tmp_path / "whole"), (rest, moved)):
        still = Moves(lambda: None)
        bella.fit(
            trained, (x, y), epochs=4, batch_size=16, folder=place, movers=[still], progress=False
        )
    assert_same(whole, rest)


def test_other_movers_are_another_run(tmp_path):
    fit(make(), folder=tmp_path, movers=[Moves(lambda: None)])
    with pytest.raises(bella.BellaError, match=r"holds another run \(movers"):
        fit(make(), folder=tmp_path)


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    with pytest.raises(bella.BellaError):
        fit(make(), (x, y + 7), folder=tmp_path / "a" / "run")
    assert not any(tmp_path.iterdir())
