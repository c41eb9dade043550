"""Seeds of any size decide every start."""

from __future__ import annotations

import pytest
import torch
from helpers import mlp

import bella

KINDS = {
    "low_rank": lambda seed: bella.low_rank(
        mlp(), 2, 2, ("0",), modules_to_save=("2",), head_init="reset", b_std=0.1, seed=seed
    ),
    "full": lambda seed: bella.full(mlp(), 2, reset=("2",), start_std=0.1, seed=seed),
    "rank1": lambda seed: bella.rank1(mlp(), 2, seed=seed),
    "sparse": lambda seed: bella.sparse_subspace(mlp(), density=0.5, seed=seed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_beyond_64_bits_work_and_differ(kind):
    starts = [KINDS[kind](seed).state_dict() for seed in (2**70 + 1, 2**70 + 1, 2**70 + 2)]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    assert any(not torch.equal(value, starts[2][name]) for name, value in starts[0].items())
