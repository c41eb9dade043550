"""What is cached unasked, what only when it is asked for, and what never."""

from __future__ import annotations

import copy
import random

import network_cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fit_cases import Blocks, assert_same, fit, make, problem
from own_images import write_images
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import bella
from bella.data import Augment, ImageFolder, Preprocess
from bella.errors import BellaError
from bella.precision import Precision
from bella.training import cache as module
from bella.training.cache import CachedPrefix, is_fixed
from bella.training.scratch import NoRoomError

CPU = torch.device("cpu")
X, Y = problem(40)
TENSORS = TensorDataset(X, Y)


class Items(Dataset):
    """A data set of the caller's own kind."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return X[i], Y[i]


class Flips(Items):
    def __getitem__(self, i):
        return (X[i].flip(0) if torch.rand(()) < 1e-3 else X[i]), Y[i]


class Vouched(Items):
    fixed = True


class Doubtful(Items):
    fixed = "perhaps"


class Transformed(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + random.random(), y


class Other(DataLoader):
    """A loader that does something of its own to its batches."""

    def __iter__(self):
        return ((x + 1, y) for x, y in super().__iter__())


def own_collate(items):
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


@pytest.mark.parametrize(
    ("data", "known"),
    [
        ((X, Y), True),
        (TENSORS, True),
        (Subset(TENSORS, [3, 1]), True),
        (ConcatDataset([TENSORS, Subset(TENSORS, range(4))]), True),
        (DataLoader(TENSORS, 8, shuffle=True), True),
        (DataLoader(TENSORS, batch_sampler=[[1, 2], [3]]), True),
        (Vouched(), True),
        (Items(), False),
        (Flips(), False),
        (Doubtful(), False),
        (Transformed(X, Y), False),
        (Subset(Items(), [0, 1]), False),
        (ConcatDataset([TENSORS, Items()]), False),
        (list(zip(X, Y, strict=True)), False),
        (DataLoader(TENSORS, 8, collate_fn=own_collate), False),
        (DataLoader(TENSORS, batch_size=None), False),
        (Other(TENSORS, 8), False),
    ],
)
def test_tensors_are_cached_unasked_and_all_else_only_on_its_word(data, known):
    assert is_fixed(make().train(), data, CPU) == known


def test_our_readers_are_known_without_augmentation(tmp_path):
    write_images(tmp_path, 2)
    plain = Preprocess(4)
    folder = ImageFolder(tmp_path, plain)

    class Noisy(ImageFolder):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + torch.rand(()), y

    assert folder.fixed
    assert folder.select([0, 1]).fixed
    assert not ImageFolder(tmp_path, Preprocess(4, augment=Augment())).fixed
    assert not ImageFolder(tmp_path, lambda image: plain(image)).fixed
    assert not Noisy(tmp_path, plain).fixed


class Draws(nn.Module):
    """Draws from one of the generators and hardly ever shows it."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + (float(self.draw()) > 1.0)


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand(()), random.random, np.random.rand],
    ids=["torch", "python", "numpy"],
)
def test_a_prefix_that_draws_a_number_is_not_cached_even_if_nothing_is_seen_of_it(draw):
    network = Blocks()
    network.blocks[0].append(Draws(draw))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert not is_fixed(make(network=network).train(), TENSORS, CPU)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_a_prefix_with_a_generator_of_its_own_is_not_cached():
    own = torch.Generator().manual_seed(0)
    network = Blocks()
    noise = Draws(None)
    noise.forward = lambda x: x + torch.rand((), generator=own)
    network.blocks[0].append(noise)
    assert not is_fixed(make(network=network).train(), TENSORS, CPU)


LOADERS = {
    "shuffled": lambda: DataLoader(Vouched(), 7, shuffle=True),
    "dropping the last": lambda: DataLoader(Vouched(), 7, shuffle=True, drop_last=True),
    "in order": lambda: DataLoader(Vouched(), 7),
    "replacement": lambda: DataLoader(Vouched(), 7, sampler=RandomSampler(Vouched(), True, 30)),
    "subset": lambda: DataLoader(Vouched(), 7, sampler=SubsetRandomSampler(range(5, 30))),
    "weights": lambda: DataLoader(
        Vouched(), batch_sampler=BatchSampler(WeightedRandomSampler(Y + 0.1, 33), 5, False)
    ),
    "own generator": lambda: DataLoader(
        Vouched(), 7, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
    "workers": lambda: DataLoader(Vouched(), 7, shuffle=True, num_workers=1),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_cache_changes_no_batch_of_any_loader(name):
    plain, options = make(2), {"validation": (X, Y), "epochs": 2}
    fit(plain, LOADERS[name](), cache_prefix=False, **options)
    for cache_bytes in (2**30, 0):
        kept = make(2)
        fit(kept, LOADERS[name](), cache_prefix=True, cache_bytes=cache_bytes, **options)
        assert_same(plain, kept, rtol=0, atol=1e-6)


def test_a_cache_holds_what_the_sampler_draws_and_says_so_of_the_rest():
    posterior = make()
    kept = CachedPrefix(posterior, DataLoader(TENSORS, 8, sampler=SubsetRandomSampler([9, 4, 30])))
    assert [len(x) for x in kept.kept] == [3]
    stream, labels = kept.batch([30, 4])
    torch.testing.assert_close(posterior(stream), posterior(X[[30, 4]]))
    assert labels.tolist() == Y[[30, 4]].tolist()
    with pytest.raises(BellaError, match="did not show"):
        kept.batch([30, 5])


def test_no_chunk_is_a_batch_of_one_by_chance(monkeypatch):
    sizes = []
    posterior = make()
    original = type(posterior).prefix

    def counted(self, x):
        sizes.append(len(x))
        return original(self, x)

    monkeypatch.setattr(type(posterior), "prefix", counted)
    CachedPrefix(posterior, (X[:33], Y[:33]), batch_size=16)
    assert sizes == [11, 11, 11]


class Residual(nn.Module):
    """x + tanh(W (x scale))."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return x + torch.tanh(self.linear(x * scale))


class Texts(nn.Module):
    """Mean of embedded tokens after three blocks."""

    def __init__(self, block=Residual):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 4)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def texts(network=None):
    last = (r"blocks\.2\.linear",)
    return bella.low_rank(network or Texts(), 2, 2, last, modules_to_save=("head",))


def pad(items):
    longest = max(len(ids) for ids, _ in items)
    return torch.stack([F.pad(ids, (0, longest - len(ids))) for ids, _ in items]), torch.tensor(
        [y for _, y in items]
    )


# A chunk of texts of one token would have been broadcast over the cache.
UNEVEN = [(torch.arange(1, 6), i % 3) for i in range(64)] + [(torch.ones(1).long(), 0)] * 64


def test_texts_of_unequal_lengths_are_not_cached_and_asking_for_it_is_refused():
    loader = DataLoader(UNEVEN, 8, collate_fn=pad)
    plain, auto = texts(), texts()
    fit(plain, loader, epochs=1, cache_prefix=False)
    fit(auto, loader, epochs=1)
    assert_same(plain, auto)
    refused = texts()
    with pytest.raises(BellaError, match="pads to the longest") as error:
        fit(refused, loader, epochs=1, cache_prefix=True)
    assert "\n" not in str(error.value)
    assert refused.training  # as before the cache was tried


def test_what_all_examples_share_must_be_the_same_for_all():
    class Scaled(Texts):
        def forward(self, ids):
            x, scale = self.embed(ids), ids.float().mean()  # of the whole batch
            for block in self.blocks:
                x = block(x, scale)
            return self.head(x.mean(1))

    posterior = texts(Scaled())
    ids = torch.arange(64).remainder(20)[:, None].repeat(1, 3)
    with (
        pytest.warns(UserWarning, match="which others are in its batch"),
        pytest.raises(BellaError, match="no prefix"),
    ):
        CachedPrefix(posterior, (ids, ids[:, 0] % 3), batch_size=16)


def test_collate_functions_that_leave_examples_out_cannot_be_cached():
    def some(items):
        return own_collate(items[1:])

    with pytest.raises(BellaError, match="rows of"):
        fit(make(), DataLoader(TENSORS, 8, collate_fn=some), cache_prefix=True)


def test_loaders_that_do_more_than_collate_are_refused_when_a_cache_is_asked_for():
    for loader in (Other(TENSORS, 8), DataLoader([(X, Y)], batch_size=None)):
        with pytest.raises(BellaError, match="plain DataLoader"):
            fit(make(), loader, cache_prefix=True)
        fit(make(), loader, epochs=1)


def test_without_room_on_disk_a_run_goes_on_and_says_so(monkeypatch):
    def full(*_):
        raise NoRoomError("There is no room.")

    monkeypatch.setattr(module, "tensors_on_disk", full)
    plain, kept = make(), make()
    fit(plain, cache_prefix=False)
    with pytest.warns(UserWarning, match="no room. This run goes on without a cache"):
        fit(kept, cache_bytes=0)
    assert_same(plain, kept, rtol=0, atol=1e-6)
    with pytest.raises(BellaError, match="no room"):
        fit(make(), cache_bytes=0, cache_prefix=True)


class Tables(nn.Module):
    """A block that makes a table of positions when it first needs one, and keeps it."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(4, 4), None

    def forward(self, x):
        if self.table is None or len(self.table) < x.shape[1]:
            self.table = torch.arange(x.shape[1] * 4.0).view(-1, 4).cos()
        return x + torch.tanh(self.linear(x)) * self.table[: x.shape[1]]


SHORT = torch.arange(60).remainder(20).view(12, 5), torch.arange(12) % 3
LONG = torch.arange(54).remainder(20).view(6, 9), torch.arange(6) % 3


@pytest.mark.parametrize("first", ["predict", "evaluate", "auto", "cache", "stop", "validation"])
def test_tables_that_a_network_makes_while_predicting_can_be_trained_with(first):
    posterior = texts(Texts(Tables))
    trained = copy.deepcopy(posterior)
    options = {"epochs": 2, "validation": LONG if first == "validation" else None}
    {
        "predict": lambda: bella.predict(posterior, LONG[0]),
        "evaluate": lambda: bella.evaluate(posterior, LONG),
        "auto": lambda: bella.predict(posterior, LONG[0], particles_per_pass="auto"),
        "cache": lambda: CachedPrefix(posterior, LONG),
        "stop": lambda: bella.predict(posterior, LONG[0], stop=0.01),
        "validation": lambda: None,
    }[first]()
    fit(posterior, SHORT, **options)
    fit(trained, SHORT, **options)
    assert_same(posterior, trained)
    assert not any(t.is_inference() for t in (b.table for b in posterior.network.blocks))


@pytest.mark.parametrize(("name", "gains"), [("resnet", False), ("encoder", True)])
def test_a_cache_is_made_in_fewer_bits_where_the_network_gains_by_it(name, gains, monkeypatch):
    """Convolutions in bfloat16 left features 8% off, for a pass that is run once."""
    monkeypatch.setattr("bella.precision.FEWEST", 0)
    posterior, inputs = network_cases.make(name)
    (images,) = inputs["args"]
    data = TensorDataset(images, torch.zeros(len(images), dtype=torch.long))
    exact = CachedPrefix(posterior, data)
    precision = Precision("bf16")
    with precision.around(posterior):
        with precision.once(posterior):
            cache = CachedPrefix(posterior, data)
        with precision.autocast():
            assert network_cases.call(posterior, {"args": (cache.batch([0, 1])[0],)}).shape[1] == 2
        with pytest.raises(BellaError, match="is held in"):
            posterior(images)
    same = [torch.equal(a, b) for a, b in zip(exact.kept, cache.kept, strict=True)]
    assert all(same) != gains
