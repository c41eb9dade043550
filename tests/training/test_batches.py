"""The forms of data, and loaders that are used as they are given."""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from fit_cases import Blocks, assert_same, fit, make, problem
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import bella
from bella.data.loaders import opened
from bella.training.fit import Run


class Numbered(Dataset):
    """Examples that tell their position in their third feature, and count their readings."""

    def __init__(self, count=40, noise=None, fixed=False):
        self.x, self.y = problem(count)
        self.noise, self.fixed = noise, fixed
        self.read = Counter()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read[i] += 1
        x = self.x[i].clone()
        x[2] = i
        if self.noise is not None:
            x[3] = self.noise()
        return x, self.y[i]


class Seen(nn.Module):
    """A network that writes down the positions of the examples that train."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Identity()) for _ in range(3)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def trained_on(monkeypatch, data, particles=2, **options):
    """The labels' batches that `fit` steps on, as lists of lists."""
    batches = []
    original = Run.update

    def update(self, group, *rest):
        batches.extend(batch[1].tolist() for batch in group)
        return original(self, group, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", update)
        fit(make(particles, Seen()), data, **({"epochs": 1} | options))
    return batches


class Positions(Dataset):
    """Examples whose label is their position modulo 3, with a marker that they are the same."""

    fixed = True

    def __init__(self, count=30):
        self.x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], i % 3


MODES = [
    {"cache_prefix": False},
    {"cache_prefix": True},
    {"cache_prefix": "auto"},
    {"cache_prefix": False, "accumulate": 2},
    {"cache_prefix": False, "particles_per_pass": 1},
]


@pytest.mark.parametrize("options", MODES)
def test_given_batches_are_trained_on_as_they_are(monkeypatch, options):
    chosen = [[0, 1, 2], [9, 9], [4], [2, 1, 0, 7, 6]]
    loader = DataLoader(Positions(), batch_sampler=chosen)
    found = trained_on(monkeypatch, loader, **options)
    assert found == [[i % 3 for i in batch] for batch in chosen]


@pytest.mark.parametrize("options", [*MODES, {"minibatches": "own"}])
@pytest.mark.parametrize("whole", [False, True])
def test_weights_of_a_sampler_hold_in_every_mode(monkeypatch, options, whole):
    weights = torch.zeros(30)
    weights[::3] = 1.0  # labels 0 alone
    sampler = WeightedRandomSampler(weights, 24)
    loader = (
        DataLoader(Positions(), batch_sampler=BatchSampler(sampler, 6, False))
        if whole
        else DataLoader(Positions(), 6, sampler=sampler)
    )
    found = trained_on(monkeypatch, loader, **options)
    assert len(found) == 4
    assert set(torch.tensor(found).flatten().tolist()) == {0}


@pytest.mark.parametrize("options", [{"cache_prefix": False}, {}, {"minibatches": "own"}])
def test_a_subset_is_read_and_nothing_else(options):
    data = Numbered(fixed=True)
    loader = DataLoader(data, 2, sampler=SubsetRandomSampler([5, 8, 13, 21]))
    fit(make(2), loader, epochs=2, **options)
    assert set(data.read) == {5, 8, 13, 21}


def test_every_particle_goes_through_all_the_data_in_an_order_of_its_own(monkeypatch):
    batches = trained_on(
        monkeypatch, DataLoader(Positions(), 5, shuffle=True), particles=3, minibatches="own"
    )
    labels = torch.tensor(batches)  # (steps, particles, batch)
    assert labels.shape == (6, 3, 5)
    each = labels.permute(1, 0, 2).flatten(1)
    assert (each.sort(1).values == torch.arange(30).remainder(3).sort().values).all()
    assert not torch.equal(each[0], each[1])


def test_own_minibatches_refuse_what_gives_them_nothing_of_their_own():
    class Once:
        def __init__(self):
            self.batches = iter(DataLoader(Positions(), 5))
            self.dataset = Positions()

        def __len__(self):
            return 6

        def __iter__(self):
            return self.batches

    def uneven(items):
        longest = max(int(y) for _, y in items) + 4
        return torch.stack([nn.functional.pad(x, (0, longest - 4)) for x, _ in items]), torch.zeros(
            len(items)
        ).long()

    class Cut(Blocks):
        def forward(self, x):
            return super().forward(x[:, :4])

    for loader, words in (
        (DataLoader(Positions(), 5), "one order"),
        (Once(), "read only once"),
        (DataLoader(Positions(), 1, shuffle=True, collate_fn=uneven), "have the shapes"),
    ):
        with pytest.raises(bella.BellaError, match=words) as error:
            fit(make(2, Cut()), loader, minibatches="own", transport_options={"data_size": 30})
        assert "\n" not in str(error.value)
    with pytest.raises(bella.BellaError, match="leave out one"):
        fit(make(2), minibatches="own", cache_prefix=True)


def test_the_callers_loader_is_left_as_it_was():
    loader = DataLoader(
        Numbered(),
        8,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    before = dict(vars(loader))
    fit(make(2), loader, epochs=2)
    assert {k: v for k, v in vars(loader).items() if k != "_IterableDataset_len_called"} == {
        k: v for k, v in before.items() if k != "_IterableDataset_len_called"
    }


@pytest.mark.parametrize(
    "noise",
    [random.random, np.random.rand, lambda: float(torch.rand(()))],
    ids=["python", "numpy", "torch"],
)
def test_one_seed_decides_every_generator_and_none_of_the_callers_moves(noise):
    runs = []
    for start in (1, 2):
        torch.manual_seed(start), random.seed(start), np.random.seed(start)
        expected = copy.deepcopy((random.getstate(), np.random.get_state()[1].tolist()))
        posterior = make(2)
        fit(posterior, Numbered(noise=noise), seed=3)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == expected
        runs.append(posterior)
    assert_same(*runs)


class Stopped(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
        {"sampler": WeightedRandomSampler(torch.ones(40), 40)},
    ],
    ids=["main", "workers", "persistent", "weighted"],
)
@pytest.mark.parametrize("minibatches", ["shared", "own"])
def test_random_data_resume_to_the_same_bits(tmp_path, monkeypatch, options, minibatches):
    def loader():
        given = {"shuffle": "sampler" not in options} | options
        return DataLoader(
            Numbered(noise=lambda: float(torch.rand(())) + random.random()), 10, **given
        )

    settings = {"epochs": 3, "minibatches": minibatches}
    whole, again = make(2), make(2)
    fit(whole, loader(), folder=tmp_path / "whole", **settings)
    original = Run.run_epoch

    def stops(self, epoch, *rest):
        if epoch == 2:
            raise Stopped
        return original(self, epoch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "run_epoch", stops)
        with pytest.raises(Stopped):
            fit(make(2), loader(), folder=tmp_path / "stopped", **settings)
    fit(again, loader(), folder=tmp_path / "stopped", **settings)
    assert_same(whole, again)


def test_a_generator_of_the_loaders_own_is_named_when_a_run_goes_on(tmp_path, monkeypatch):
    def loader():
        return DataLoader(Numbered(), 10, shuffle=True, generator=torch.Generator().manual_seed(1))

    original = Run.run_epoch

    def stops(self, epoch, *rest):
        if epoch == 1:
            raise Stopped
        return original(self, epoch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "run_epoch", stops)
        with pytest.raises(Stopped):
            fit(make(2), loader(), folder=tmp_path, epochs=2)
    with pytest.warns(UserWarning, match="generator of its own"):
        fit(make(2), loader(), folder=tmp_path, epochs=2)


def test_samplers_that_want_to_know_the_epoch_are_told():
    class Told(Sampler):
        def __init__(self):
            self.epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

        def __iter__(self):
            return iter(range(30))

        def __len__(self):
            return 30

    sampler = Told()
    fit(make(2), DataLoader(Positions(), 10, sampler=sampler), epochs=3)
    assert sampler.epochs == [0, 1, 2]


# ------------------------------------------------------------ forms


class Stream(IterableDataset):
    def __init__(self, count=24, says=None):
        self.count, self.says = count, says

    def __iter__(self):
        x, y = problem(self.count)
        return iter(zip(x, y, strict=True))


class Sized(Stream):
    def __len__(self):
        return self.says or self.count


def named(count=24):
    x, y = problem(count)
    return [{"x": a, "labels": int(b)} for a, b in zip(x, y, strict=True)]


class Loader:
    """Somebody else's loader: iterable, with a length, and nothing more."""

    def __len__(self):
        return 3

    def __iter__(self):
        x, y = problem(24)
        return iter(zip(x.split(8), y.split(8), strict=True))


def token_lists(count=24):
    x, y = problem(count)
    return [{"x": a.tolist(), "labels": int(b)} for a, b in zip(x, y, strict=True)]


FORMS = {
    "pair": problem(24),
    "list as pair": list(problem(24)),
    "data set": TensorDataset(*problem(24)),
    "loader": DataLoader(TensorDataset(*problem(24)), 8),
    "sized stream": Sized(),
    "loader of a sized stream": DataLoader(Sized(), 8),
    "mappings": named(),
    "lists of numbers": token_lists(),
    "pairs of lists": [(item["x"], item["labels"]) for item in token_lists()],
    "hub": datasets.Dataset.from_list(token_lists()),
    "hub as torch": datasets.Dataset.from_list(token_lists()).with_format("torch"),
    "hub in a loader": DataLoader(
        datasets.Dataset.from_list(token_lists()).with_format("torch"), 8
    ),
    "batches in a loader": DataLoader(list(Loader()), batch_size=None),
}


@pytest.mark.parametrize("name", FORMS)
def test_fit_and_evaluate_take_the_same_forms(name):
    posterior, x, y = make(2), *problem(24)
    assert fit(posterior, FORMS[name], epochs=1).history[-1]["loss"] > 0
    found = bella.evaluate(posterior, FORMS[name])
    expected = bella.evaluate(posterior, [(x, y)])
    assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    "data", [Stream(), DataLoader(Stream(), 8), Loader(), iter(Loader()), list(Loader())]
)
def test_evaluate_takes_what_has_no_length(data):
    posterior, x, y = make(2), *problem(24)
    assert bella.evaluate(posterior, data) == pytest.approx(
        bella.evaluate(posterior, (x, y)), rel=1e-4, nan_ok=True
    )


def test_another_loader_trains_when_the_number_of_examples_is_given():
    with pytest.raises(bella.BellaError, match="data_size"):
        fit(make(2), Loader(), epochs=1)
    one, two = make(2), make(2)
    fit(one, Loader(), epochs=1, transport_options={"data_size": 24})
    fit(two, DataLoader(TensorDataset(*problem(24)), 8), epochs=1)
    assert_same(one, two, rtol=0, atol=1e-6)


X, Y = problem(24)
REFUSED = {
    "stream without length": (Stream(), "no length"),
    "loader of such a stream": (DataLoader(Stream(), 8), "no length"),
    "hub stream": (datasets.Dataset.from_list(token_lists()).to_iterable_dataset(), "no length"),
    "generator of batches": ((batch for batch in Loader()), "no length"),
    "DatasetDict": (
        datasets.DatasetDict(train=datasets.Dataset.from_list(token_lists())),
        r"data\['train'\]",
    ),
    "columns": ({"x": X, "labels": Y}, "from_dict"),
    "path": ("images/train", "open_images"),
    "arrays": ((X.numpy(), Y.numpy()), "as_tensor"),
    "three tensors": ((X, X, Y), "pair"),
    "other lengths": ((X, Y[:10]), "as many"),
    "a number for labels": ((X, torch.tensor(1)), "as many"),
    "nothing": ([], "no training data"),
    "empty": (TensorDataset(X[:0], Y[:0]), "no training data"),
    "no data": (3, "give a data set"),
    "drop_last": (DataLoader(TensorDataset(X, Y), 64, drop_last=True), "drop_last"),
    "empty subset": (
        DataLoader(TensorDataset(X, Y), 8, sampler=SubsetRandomSampler([])),
        "no batch",
    ),
    "batches in a list": (list(Loader()), "batch_size=None"),
    "lengths of several kinds": (
        [{"x": [0.1] * (4 + i % 2), "labels": 0} for i in range(8)],
        "collate_fn",
    ),
    "ragged": ([{"x": [[0.1], [0.1, 0.2]], "labels": 0}] * 8, "collate_fn"),
    "texts for labels": ([(x, "cat") for x in X], "class numbers"),
    "objects": ([(object(), 0)] * 8, "one batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_on_gets_one_sentence_before_the_first_step(monkeypatch, name):
    data, words = REFUSED[name]
    posterior = make(2)
    before = {k: v.clone() for k, v in posterior.state_dict().items()}
    with pytest.raises(bella.BellaError, match=words) as error:
        fit(posterior, data)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in posterior.state_dict().items())


def test_collate_functions_are_for_data_sets():
    def pads(items):
        return torch.stack(
            [torch.tensor(x + [0.0] * (4 - len(x))) for x, _ in items]
        ), torch.tensor([y for _, y in items])

    data = [([0.1 * i] * (2 + i % 3), i % 3) for i in range(24)]
    posterior = make(2)
    fit(posterior, data, validation=data, collate_fn=pads, epochs=1)
    padded = pads(data)
    assert bella.evaluate(posterior, data, collate_fn=pads, ood=iter([padded])) == pytest.approx(
        bella.evaluate(posterior, padded, ood=padded), rel=1e-4, nan_ok=True
    )
    with pytest.raises(bella.BellaError, match="to the loader"):
        fit(posterior, DataLoader(data, 8, collate_fn=pads), collate_fn=pads)
    with pytest.raises(bella.BellaError, match="to the loader"):
        bella.evaluate(posterior, [padded][:0] or iter([padded]), collate_fn=pads)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_batch_sizes_are_checked(size):
    with pytest.raises(bella.BellaError, match="batch_size="):
        bella.evaluate(make(2), problem(24), batch_size=size)


def test_a_pair_of_numbers_stays_a_pair():
    loader = opened([(0.5, 1), (0.25, 0)], 2, shuffle=False)
    x, y = next(iter(loader))
    assert x.tolist() == [0.5, 0.25]
    assert y.tolist() == [1, 0]


class Endless(Stream):
    def __iter__(self):
        while True:
            yield from super().__iter__()

    def __len__(self):
        return 24


@pytest.mark.parametrize(
    ("data", "words", "read"),
    [
        (Sized(24, 48), "6 batches and gave 3", 24),
        (Sized(24, 16), "2 batches and has more", 16),
        (Endless(), "3 batches and has more", 24),
    ],
)
def test_an_epoch_has_the_batches_that_the_loader_says(monkeypatch, data, words, read):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = trained_on(monkeypatch, DataLoader(data, 8), accumulate=2)
    assert sum(map(len, found)) == read
    assert [str(w.message) for w in said if words in str(w.message)]


def test_a_loader_that_gives_nothing_is_refused():
    with pytest.raises(bella.BellaError, match="gave none"):
        fit(make(2), DataLoader(Sized(0, 24), 8))


def test_columns_that_the_network_does_not_take_are_named():
    rows = [item | {"idx": i} for i, item in enumerate(named())]
    for use in (lambda: fit(make(2), rows), lambda: bella.evaluate(make(2), rows)):
        with pytest.raises(bella.BellaError, match=r"'idx', which Blocks .*\(it takes x\)"):
            use()


def test_tokens_that_default_collate_turned_around_are_named():
    rows = [{"input_ids": [1, 2, 3], "labels": i % 3} for i in range(8)]
    for use in (fit, bella.evaluate):
        with pytest.raises(bella.BellaError, match="turns lists of token numbers around"):
            use(make(2), DataLoader(rows, 4))


def test_workers_read_what_the_main_process_reads():
    one, two = make(2), make(2)
    fit(one, DataLoader(Numbered(), 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the machine's number of cores
        fit(two, DataLoader(Numbered(), 10, num_workers=2, persistent_workers=True))
    assert_same(one, two)


def test_batches_of_no_example_are_passed_over_and_alone_refused():
    posterior, x, y = make(2), *problem(24)
    found = bella.evaluate(posterior, [(x[:12], y[:12]), (x[:0], y[:0]), (x[12:], y[12:])])
    assert found == pytest.approx(bella.evaluate(posterior, (x, y)), rel=1e-4, nan_ok=True)
    with pytest.raises(bella.BellaError, match="empty"):
        bella.evaluate(posterior, [(x[:0], y[:0])])
    with pytest.raises(bella.BellaError, match="batch is empty"):
        bella.predict(posterior, x[:0])
    with pytest.raises(bella.BellaError, match="batch is empty"):
        bella.predict(posterior, {"x": x[:0]})
    assert Blocks()(x[:0]).shape == (0, 3)
