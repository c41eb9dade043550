"""N and the rows of a cache: what a loader draws from, told without drawing."""

from __future__ import annotations

import pytest
import torch
from fit_cases import fit, make, problem
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import bella
from bella.training.samplers import drawn, examples, in_fixed_order

DATA = TensorDataset(*problem(20))


class Own(Sampler):
    """A sampler of the caller's own kind."""

    def __init__(self, chosen):
        self.chosen = chosen

    def __iter__(self):
        return iter(self.chosen)

    def __len__(self):
        return len(self.chosen)


class Twice(RandomSampler):
    def __iter__(self):
        return iter([0, 0, 1, 1])

    def __len__(self):
        return 4


def weighted(kept, draws, replacement=True):
    weights = torch.zeros(20)
    weights[:kept] = 0.3
    return WeightedRandomSampler(weights, draws, replacement)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 20),
        ({"shuffle": True, "drop_last": True}, 20),  # others are dropped each time
        ({"drop_last": True}, 18),  # the same two are never read
        ({"sampler": RandomSampler(DATA, replacement=True, num_samples=7)}, 20),
        ({"sampler": RandomSampler(DATA, num_samples=50)}, 20),
        ({"sampler": SubsetRandomSampler([3, 5, 8, 5])}, 3),
        ({"sampler": weighted(4, 100)}, 4),
        ({"sampler": weighted(4, 2, replacement=False)}, 4),
        ({"sampler": DistributedSampler(DATA, num_replicas=2, rank=0)}, 20),
        ({"sampler": [1, 2, 2, 7]}, 3),
        ({"sampler": range(5, 11)}, 6),
        ({"sampler": Own(list(range(19, -1, -1)))}, 20),
    ],
)
def test_n_is_the_number_of_examples_that_training_draws_from(options, expected):
    loader = DataLoader(DATA, batch_size=6, **options)
    assert examples(loader) == expected
    if options.get("sampler") is not None:
        for drop_last in (False, True):
            batches = BatchSampler(options["sampler"], 1, drop_last)
            assert examples(DataLoader(DATA, batch_sampler=batches)) == expected


def test_what_is_drawn_is_among_the_positions():
    for sampler in (SubsetRandomSampler([3, 5, 8]), weighted(4, 60), RandomSampler(DATA)):
        loader = DataLoader(DATA, batch_size=4, sampler=sampler)
        assert set(sampler) <= set(drawn(loader))


def test_parts_and_given_batches_count_what_they_hold():
    assert examples(DataLoader(Subset(DATA, range(7)), 3)) == 7
    assert examples(DataLoader(ConcatDataset([DATA, DATA]), 3)) == 40
    assert examples(DataLoader(DATA, batch_sampler=[[0, 1], [1, 2, 3]])) == 4
    x, y = problem(20)
    whole = DataLoader([(x[:12], y[:12]), (x[12:], y[12:])], batch_size=None)
    assert examples(whole) == 20


def test_a_stream_with_a_length_counts_it():
    class Sized(IterableDataset):
        def __iter__(self):
            return iter(DATA)

        def __len__(self):
            return 20

    assert examples(DataLoader(Sized(), 6)) == 20


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, 2, sampler=Own([1, 2, 3])),  # three of twenty, or any three an epoch?
        DataLoader(DATA, 2, sampler=Twice(DATA)),  # a known kind that draws in another way
        DataLoader(DATA, batch_sampler=Own([[0, 1], [2, 3]])),
        DataLoader(DATA, batch_size=None),
    ],
)
def test_what_cannot_be_told_is_asked_for(loader):
    with pytest.raises(bella.BellaError, match="data_size") as error:
        examples(loader)
    assert "\n" not in str(error.value)
    assert examples(loader, 13) == 13


def test_weights_of_zero_are_no_example():
    with pytest.raises(bella.BellaError, match="draws from no example"):
        examples(DataLoader(DATA, 2, sampler=weighted(0, 4)))


@pytest.mark.parametrize("given", [0, -1, 2.5, True, "3"])
def test_a_given_number_of_examples_is_checked(given):
    with pytest.raises(bella.BellaError, match="data_size="):
        fit(make(), transport_options={"data_size": given})


def test_the_given_number_reaches_the_transport():
    ratios = [
        fit(
            make(),
            epochs=1,
            coupling_warmup=0.0,
            optimizer=lambda p: torch.optim.SGD(p, lr=1e-9),
            transport_options={"data_size": size},
        ).history[-1]["repulsion_ratio"]
        for size in (48, 480)
    ]
    assert ratios[0] == pytest.approx(10 * ratios[1], rel=1e-3)


def test_a_fixed_order_is_known_where_it_is_one():
    assert in_fixed_order(DataLoader(DATA, 4))
    assert in_fixed_order(DataLoader(DATA, 4, sampler=[3, 1]))
    assert in_fixed_order(DataLoader(DATA, batch_sampler=[[3, 1]]))
    assert in_fixed_order(
        DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 2, False))
    )
    assert not in_fixed_order(DataLoader(DATA, 4, shuffle=True))
    assert not in_fixed_order(DataLoader(DATA, 4, sampler=Own([3, 1])))
