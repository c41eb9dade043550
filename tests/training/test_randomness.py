"""One seed decides a run, and the caller's generators do not notice it."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from fit_cases import Blocks, assert_same, fit, make, problem
from torch.utils.data import Dataset

import bella
from bella.training.randomness import own_randomness, seed_all


class Augmented(Dataset):
    """Noise from any of the three generators that data sets draw from."""

    def __init__(self, source):
        self.x, self.y = problem()
        self.draw = {
            "random": random.random,
            "numpy": np.random.rand,
            "torch": lambda: float(torch.rand(())),
        }[source]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + self.draw(), self.y[i]


def draws():
    return random.random(), np.random.rand(), float(torch.rand(()))


@pytest.mark.parametrize("source", ["random", "numpy", "torch"])
def test_a_seed_decides_what_data_sets_draw(source):
    runs = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        seed_all(before)
        posterior = make()
        seed_all(before)
        fit(posterior, Augmented(source), seed=seed, cache_prefix=False, epochs=2)
        runs.append(posterior)
    assert_same(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_same(runs[0], runs[2])


@pytest.mark.parametrize("fails", [False, True])
def test_no_generator_of_the_callers_is_moved(fails):
    posterior = make(network=Blocks(0.3))
    seed_all(7)
    expected = draws()
    seed_all(7)
    if fails:
        x, y = problem()
        with pytest.raises(bella.BellaError):
            fit(posterior, (x, y + 5))
    else:
        fit(posterior, Augmented("random"))
    assert draws() == expected


def test_runs_in_threads_are_as_each_alone():
    def run(seed):
        posterior = posteriors[seed]
        fit(posterior, epochs=6, seed=seed)

    def fresh():
        return [make(network=Blocks(0.2)) for _ in range(3)]

    posteriors = alone = fresh()
    for seed in range(3):
        run(seed)
    posteriors = together = fresh()
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_a_run_inside_a_run_takes_its_turn_at_once():
    posterior = make()
    with own_randomness():
        seed_all(4)
        expected = draws()
        seed_all(4)
        fit(posterior, epochs=1)
        assert draws() == expected
