"""bella.fit against a plain loop, against itself after a stop, and against bad input."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from fit_cases import Blocks, assert_same, fit, make, problem, values
from helpers import mlp
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bella
from bella.training.batches import epoch_seed
from bella.training.cache import CachedPrefix
from bella.training.fit import Run
from bella.training.schedule import learning_rate_factor


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd", "function"])
def test_every_transport_learns(name):
    posterior = make()
    options = {"epochs": 20, "learning_rate": 0.1, "validation": problem(seed=1)}
    record = fit(posterior, transport=name, **options)
    first, last = record.history[0], record.history[-1]
    assert last["loss"] < 0.8 * first["loss"]
    assert record.history[-1]["validation_nll"] < 1.0
    assert all(math.isfinite(point["distance"]) for point in record.trace)


def test_one_seed_gives_the_same_bits_and_another_does_not():
    runs = [make(), make(), make()]
    for posterior, seed in zip(runs, (0, 0, 1), strict=True):
        torch.manual_seed(seed * 99)  # what happened before does not matter
        fit(posterior, seed=seed)
    assert_same(runs[0], runs[1])
    heads = [posterior.layers()["head"].values["weight"] for posterior in runs]
    assert not torch.equal(heads[0], heads[2])


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    posterior = make()
    torch.manual_seed(5)
    fit(posterior, epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["repulsive", "svgd"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, name):
    options = {"transport": name, "epochs": 4, "validation": problem(seed=1)}
    network = Blocks(0.3)  # dropout: the random numbers must be the same as well
    whole, stopped = make(network=copy.deepcopy(network)), make(network=copy.deepcopy(network))
    expected = fit(whole, folder=tmp_path / "whole", **options)
    original = Run.run_epoch

    def stops(self, epoch, *rest):
        if epoch == 2:
            raise KeyboardInterrupt
        return original(self, epoch, *rest)

    monkeypatch.setattr(Run, "run_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, folder=tmp_path / "stopped", **options)
    monkeypatch.setattr(Run, "run_epoch", original)
    again = make(network=copy.deepcopy(network))
    record = fit(again, folder=tmp_path / "stopped", **options)
    assert_same(whole, again)
    assert record.history == expected.history
    assert record.trace == expected.trace
    assert record.best_epoch == expected.best_epoch


def test_resuming_with_other_settings_is_refused(tmp_path):
    fit(make(), folder=tmp_path, epochs=1)
    with pytest.raises(bella.BellaError, match=r"learning_rate was 0.02, now 0.5"):
        fit(make(), folder=tmp_path, epochs=2, learning_rate=0.5)
    with pytest.raises(bella.BellaError, match="posterior particles was 3, now 2"):
        fit(make(particles=2), folder=tmp_path, epochs=1)
    fit(make(), folder=tmp_path, epochs=2, learning_rate=0.5, resume=False)


def test_one_particle_is_a_plain_loop():
    posterior = make(particles=1)
    plain = copy.deepcopy(posterior)
    x, y = problem()
    record = fit(posterior, weight_decay=0.1, clip=0.5)
    own = list(plain.stacked_parameters().values())
    optimizer = torch.optim.AdamW(own, lr=0.02, weight_decay=0.1)
    step, steps = 0, 18
    for epoch in range(3):
        torch.manual_seed(epoch_seed(0, epoch))
        for bx, by in DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * learning_rate_factor(step, steps, 0.1)
            optimizer.zero_grad()
            F.cross_entropy(plain(bx)[0], by).backward()
            nn.utils.clip_grad_norm_(own, 0.5)
            optimizer.step()
            step += 1
    assert_same(posterior, plain, rtol=0, atol=1e-6)
    assert len(record.history) == 3


def test_particles_train_as_if_each_were_alone():
    together = make(particles=3)
    fit(together, transport="ensemble", clip=0.05)  # a clip that bites, for each by itself
    for i in range(3):
        alone = make(particles=3)
        with alone.subset([i]):
            single = make(particles=1)
            for name, value in single.stacked_parameters().items():
                value.data.copy_(alone.stacked_parameters()[name].data[i : i + 1])
        fit(single, transport="ensemble", clip=0.05)
        for name, value in values(single).items():
            torch.testing.assert_close(value[0], values(together)[name][i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd", "function"])
def test_passes_over_parts_of_the_particles_change_nothing(name):
    whole, parts = make(), make()
    fit(whole, transport=name)
    fit(parts, transport=name, particles_per_pass=2)
    assert_same(whole, parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["repulsive", "svgd"])
def test_accumulated_batches_are_one_large_batch(name):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    large, small = make(), make()
    fit(large, batch_size=16, optimizer=sgd, transport=name)
    fit(small, batch_size=8, accumulate=2, optimizer=sgd, transport=name)
    assert_same(large, small, rtol=1e-4, atol=1e-6)


def test_the_repulsion_of_predictions_is_averaged_over_accumulated_batches():
    x, y = problem(8)
    options = {"epochs": 4, "transport": "function", "coupling_warmup": 0.0, "clip": None}
    options["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=0.1)

    def trained(data, temperature, accumulate):
        posterior = make()
        strength = {"temperature": temperature}
        fit(posterior, data, transport_options=strength, accumulate=accumulate, **options)
        return posterior

    # The same batch twice before each step; the repulsion's strength is T/N.
    twice = DataLoader(TensorDataset(x.repeat(2, 1), y.repeat(2)), batch_size=8)
    once = DataLoader(TensorDataset(x, y), batch_size=8)
    assert_same(trained(twice, 160.0, 2), trained(once, 80.0, 1), rtol=1e-4, atol=1e-6)


def test_own_minibatches_train_particles_on_orders_of_their_own():
    shared, own = make(b_std=0.0, particles=2), make(b_std=0.0, particles=2)
    for posterior in (shared, own):  # two equal particles
        for value in posterior.stacked_parameters().values():
            value.data[1] = value.data[0]
    fit(shared, transport="ensemble")
    fit(own, transport="ensemble", minibatches="own")
    for value in values(shared).values():
        torch.testing.assert_close(value[0], value[1])
    assert any(not torch.allclose(v[0], v[1], atol=1e-3) for v in values(own).values())


def test_own_minibatches_of_a_cached_prefix_are_refused():
    posterior = make()
    x, y = problem()
    kept = CachedPrefix(posterior, DataLoader(TensorDataset(x, y), batch_size=8), limit=10**6)
    data = DataLoader(kept, batch_size=8, shuffle=True, collate_fn=kept.batch)
    with pytest.raises(bella.BellaError, match="without a cached prefix"):
        fit(posterior, data, minibatches="own")


class Noisy(Dataset):
    """Augmented data: never the same twice."""

    def __init__(self):
        self.x, self.y = problem()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.randn(4), self.y[i]


@pytest.mark.parametrize(
    ("data", "rate", "used"), [(None, 0.0, True), (Noisy(), 0.0, False), (None, 0.5, False)]
)
def test_the_prefix_is_cached_where_nothing_is_random(monkeypatch, data, rate, used):
    made = []
    original = CachedPrefix.__init__

    def counted(self, *args, **kwargs):
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(CachedPrefix, "__init__", counted)
    fit(make(network=Blocks(rate)), data, epochs=1)
    assert bool(made) == used


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
def test_a_cached_prefix_changes_nothing(cache_bytes):
    plain, cached = make(), make()
    fit(plain, cache_prefix=False, validation=problem(seed=1))
    fit(cached, cache_prefix=True, cache_bytes=cache_bytes, validation=problem(seed=1))
    assert_same(plain, cached, rtol=0, atol=1e-6)


def test_large_caches_lie_on_disk_and_very_large_ones_are_refused():
    posterior = make()
    kept = CachedPrefix(posterior, problem(), limit=0)
    assert kept.on_disk
    stream, labels = kept.batch([3, 1])
    x, y = problem()
    torch.testing.assert_close(posterior(stream), posterior(x[[3, 1]]))
    assert labels.tolist() == y[[3, 1]].tolist()
    with pytest.raises(bella.BellaError, match="cache_disk_bytes"):
        fit(make(), cache_prefix=True, cache_bytes=0, cache_disk_bytes=10)
    fit(make(), cache_bytes=0, cache_disk_bytes=10, epochs=1)  # auto: does without


def test_the_best_epoch_is_kept_and_patience_ends_a_run():
    x, y = problem()
    wrong = (x, (y + 1) % 3)  # the better the fit, the worse on these labels
    posterior = make()
    record = fit(posterior, validation=wrong, epochs=9, patience=2, learning_rate=0.05)
    losses = [row["validation_nll"] for row in record.history]
    assert record.best_epoch == losses.index(min(losses)) + 1
    assert len(record.history) == record.best_epoch + 2
    found = bella.predict(posterior, wrong[0]).nll(wrong[1])
    assert found == pytest.approx(min(losses), rel=1e-5)


def test_bfloat16_stays_near():
    exact, half = make(), make()
    fit(exact)
    fit(half, precision="bf16")
    assert_same(exact, half, rtol=0, atol=0.1)
    assert all(v.dtype == torch.float32 for v in values(half).values())


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Blocks()

    def forward(self, pixels):
        return {"logits": self.inner(pixels)}


def test_batches_may_be_mappings_and_loaders():
    x, y = problem()
    data = [{"pixels": a, "labels": b} for a, b in zip(x, y, strict=True)]
    one = bella.low_rank(Named(), 2, 2, (r"inner\.blocks\.2\.0",), b_std=0.1)
    two = bella.low_rank(Named(), 2, 2, (r"inner\.blocks\.2\.0",), b_std=0.1)
    fit(one, data)
    fit(two, DataLoader(data, batch_size=8, shuffle=True))
    assert_same(one, two)


def test_the_run_folder_tells_everything(tmp_path):
    posterior = make()
    record = fit(posterior, folder=tmp_path, validation=problem(seed=1))
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"]["learning_rate"] == 0.02
    assert run["settings"]["seed"] == 0
    assert torch.__version__.startswith(run["versions"]["torch"].partition("+")[0])
    assert len(run["history"]) == 3
    assert record.folder == tmp_path
    again = bella.load(tmp_path, Blocks())
    x, _ = problem()
    assert torch.equal(again.eval()(x), posterior(x))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_inputs_and_losses_that_are_not_finite_are_told_apart():
    x, y = problem()
    broken = x.clone()
    broken[3, 2] = math.nan
    with pytest.raises(bella.BellaError, match="training inputs"):
        fit(make(), (broken, y), cache_prefix=False)
    with pytest.raises(bella.BellaError, match="loss became"):
        fit(make(), clip=None, learning_rate=1e30, optimizer=lambda p: torch.optim.SGD(p, lr=1e30))


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (None, {"epochs": 0}, "epochs=0"),
        (None, {"learning_rate": -1.0}, "learning_rate"),
        (None, {"colour": "red"}, "'colour' is no setting"),
        (None, {"precision": "int8"}, "precision"),
        (None, {"transport": "repulsiv"}, "repulsive"),
        (None, {"transport_options": {"sigma": 1}}, "sigma"),
        (None, {"transport": "function", "minibatches": "own"}, "one batch"),
        ((torch.zeros(0, 4), torch.zeros(0).long()), {}, "no training data"),
        ((torch.zeros(8, 4), torch.full((8,), 3)), {}, "Label 3 is out of range"),
        ((torch.zeros(8, 4), torch.zeros(8)), {}, "integers"),
        ([torch.zeros(4)] * 8, {"cache_prefix": False}, "pair"),
    ],
)
def test_bad_input_gets_one_sentence(data, options, words):
    with pytest.raises(bella.BellaError, match=words) as error:
        fit(make(), data, **options)
    assert "\n" not in str(error.value)


def test_double_precision_networks_train():
    posterior = bella.low_rank(mlp(), 2, 2, ("0",), b_std=0.1)
    x, y = problem()
    record = fit(posterior, (x.double(), y), epochs=1)
    assert math.isfinite(record.history[0]["loss"])
