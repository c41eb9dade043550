"""Chunks of particles from a budget: the bytes that were counted, and the gradients that remain."""

from __future__ import annotations

import gc
import math
from itertools import pairwise

import pytest
import torch
from fit_cases import Blocks, assert_same, fit, make, problem, values
from helpers import adapted, batch, gradients
from layer_cases import CASES, grads_of
from torch import nn

import bella
from bella import memory
from bella.memory import LiveBytes, at_once, largest, measure, row, total, training_step

SMALL = 2_000
"""Bytes for some of six particles of `make` on eight examples."""


def float_bytes(*shape: int) -> int:
    return 8 * math.prod(shape)


# ------------------------------------------------------------ counting


def test_what_lives_is_counted_and_what_was_there_or_is_gone_is_not():
    before = torch.zeros(100, dtype=torch.double)
    with LiveBytes() as live:
        kept = torch.ones(7, dtype=torch.double)
        before.add_(1)
        view = kept[:3]
        (before[:50] * 2).sum()
        gc.collect()
    assert live.now == float_bytes(7)
    assert live.peak == float_bytes(7) + float_bytes(50) + float_bytes(1)
    del kept
    assert live.now == float_bytes(7)  # the view holds it
    del view
    assert live.now == 0


def test_what_backward_needs_is_counted():
    x = torch.ones(10, dtype=torch.double, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().exp()  # each needs its result
        assert live.now == float_bytes(20)
    del y
    assert live.now == 0


def step_of(posterior, x):
    return training_step(posterior, lambda: total(posterior(x)))


def peak_of(posterior, x, count):
    return measure(posterior, step_of(posterior, x), count).peak


@pytest.mark.parametrize("name", [name for name in CASES if "called" not in name])
def test_bytes_bend_upwards_and_the_share_of_each_particle_falls(name):
    """What `largest` relies on."""
    case = CASES[name]
    torch.manual_seed(0)
    posterior = case.posterior(particles=12)
    x = torch.cat([case.inputs() for _ in range(8)])
    posterior.prove(x)
    peaks = {count: peak_of(posterior, x, count) for count in (1, 2, 4, 8, 12)}
    slopes = [(peaks[more] - peaks[few]) / (more - few) for few, more in pairwise(peaks)]
    for flat, steep in pairwise(slopes):
        assert steep >= 0.9 * flat
    shares = [peaks[count] / count for count in peaks]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("fixed", "each"), [(100, 10), (0, 7), (1000, 1), (5, 0)], ids=lambda value: str(value)
)
def test_a_straight_line_is_divided_exactly(fixed, each):
    for budget in (0, 99, 109, 110, 129, 130, 160, 1001, 1030, 10**6):
        fitting = [k for k in range(41) if fixed + k * each <= budget and k]
        assert largest(lambda k: fixed + k * each, budget, 40) == max(fitting, default=0)


def test_a_bend_is_never_passed_by_much_and_the_answer_fits():
    for early, late in ((10, 500), (500, 10), (90, 100)):
        for budget in range(100, 20_000, 97):
            asked = []

            def peak(k, early=early, late=late, asked=asked):
                asked.append(k)
                return max(700 + early * k, 100 + late * k)

            found = largest(peak, budget, 50)
            tried = max(asked)
            fits = [k for k in range(1, 51) if peak(k) <= budget]
            assert (found == 0) == (not fits)
            if fits:
                assert peak(found) <= budget
                assert found >= 0.7 * max(fits)
                assert tried <= 2 * max(fits)


def test_what_surely_fits_is_run_with_one_particle_alone():
    asked = []
    assert largest(lambda k: asked.append(k) or 100 + k, 101 * 50, 50) == 50
    assert set(asked) == {1}


# ------------------------------------------------------------ chunks


def trained(posterior, x, y, parts):
    posterior.zero_grad()
    for part in parts:
        with posterior.subset(part):
            bella.nll(posterior(x), y).backward()
    return gradients(posterior)


def test_chunks_cover_all_particles_and_have_the_gradients_of_one_pass():
    posterior = adapted(particles=7)
    x, y = batch(32)
    whole = trained(posterior, x, y, [range(7)])
    posterior.zero_grad()
    sizes = set()
    for budget in (2**14, 2**15, 2**16, 2**20):
        parts = bella.chunks(posterior, x, memory=budget)
        assert [i for part in parts for i in part] == list(range(7))
        for name, value in trained(posterior, x, y, parts).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)
        sizes.add(len(parts))
    assert len(sizes) > 2


def test_a_stream_stands_for_inputs():
    posterior = make(particles=6)
    x, y = problem()
    whole = trained(posterior, x, y, [range(6)])
    stream = posterior.prefix(x)
    parts = bella.chunks(posterior, stream, memory=2**14)
    assert 1 < len(parts) < 6
    for name, value in trained(posterior, stream, y, parts).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("particles", [12, 200])
def test_more_memory_gives_larger_chunks_and_no_chunk_passes_the_budget(particles):
    """Of 200 particles the gradients take more than the activations of a few."""
    posterior = adapted(particles=particles)
    x, _ = batch(64)
    posterior.prove(x)
    least, most = (peak_of(posterior, x, count) for count in (1, particles))
    sizes = set()
    for budget in torch.linspace(least, most, 12).long().tolist():
        size = len(bella.chunks(posterior, x, memory=budget)[0])
        assert size >= max(sizes, default=1)
        assert peak_of(posterior, x, size) <= budget
        sizes.add(size)
    assert max(sizes) == particles
    assert len(sizes) > 3


def test_passes_are_of_equal_size():
    posterior = adapted(particles=10)
    x, _ = batch(64)
    posterior.prove(x)
    assert at_once(posterior, step_of(posterior, x), peak_of(posterior, x, 9)) == 5


def test_one_particle_too_many_is_one_sentence():
    x, _ = batch()
    with pytest.raises(bella.BellaError, match=r"takes [\d,]+ bytes and the budget is 10: raise"):
        bella.chunks(adapted(), x, memory=10)


def test_without_a_budget_at_least_one_particle_runs(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    assert bella.chunks(adapted(particles=3), batch()[0]) == [[0], [1], [2]]
    monkeypatch.undo()
    assert bella.chunks(adapted(particles=3), batch()[0]) == [[0, 1, 2]]


def test_without_a_budget_tensors_stay_small_on_a_cpu(monkeypatch):
    posterior = adapted(particles=12)
    x, _ = batch(64)
    posterior.prove(x)
    one, two, four = (measure(posterior, step_of(posterior, x), count) for count in (1, 2, 4))
    assert max(four.sizes) == 4 * row(one, two)
    monkeypatch.setattr(memory, "KEPT", 4 * row(one, two))
    assert [len(part) for part in bella.chunks(posterior, x)] == [4, 4, 4]


@pytest.mark.parametrize("particles", [2, 3, 500])
def test_gradients_of_all_particles_do_not_pass_for_a_pass(particles):
    posterior = adapted(particles=particles)
    x, _ = batch(64)
    posterior.prove(x)
    one, two = (measure(posterior, step_of(posterior, x), count) for count in (1, 2))
    assert row(one, two) == 64 * 6 * 8  # the widest activation of one particle, in float64


def test_a_tensor_of_twice_the_size_does_not_hide_the_largest_of_a_particle():
    network = nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    posterior = bella.low_rank(network, 3, 2, ("1", "3"))
    x, _ = batch(64)
    posterior.prove(x)
    assert posterior.shared is not None  # what its first layer makes is 12 wide, once for all
    one, two = (measure(posterior, step_of(posterior, x), count) for count in (1, 2))
    assert row(one, two) == 64 * 6 * 8


def test_batches_of_one_shape_are_measured_once(monkeypatch):
    measured = []

    def counted(posterior, step, count):
        measured.append(count)
        return measure(posterior, step, count)

    monkeypatch.setattr(memory, "measure", counted)
    posterior = adapted(particles=3).eval()
    for size in (8, 8, 4, 8):
        x, _ = batch(size)
        auto = bella.predict(posterior, x, particles_per_pass="auto")
        assert torch.equal(auto.logits, bella.predict(posterior, x).logits)
    assert measured.count(1) == 2
    assert len(measured) == 2 * len(set(measured))


class Noisy(nn.Module):
    """Blocks with dropout and batch norm."""

    def __init__(self):
        super().__init__()
        self.inner = Blocks(0.3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.inner(self.norm(x))


@pytest.mark.parametrize("transport", ["ensemble", "repulsive", "svgd", "function"])
def test_measuring_leaves_no_trace(transport):
    posterior = bella.low_rank(
        Noisy(), 4, 2, (r"inner\.blocks\.2\.0",), modules_to_save=("inner.head",)
    )
    move = bella.transport.by_name(transport, posterior, data_size=10)
    posterior.train()
    x, y = problem()
    posterior.prove(x)
    bella.nll(posterior(x), y).backward()
    state = {name: value.clone() for name, value in posterior.state_dict().items()}
    grads = grads_of(posterior)
    heard = {k: [x.clone() for x in v] for k, v in getattr(move, "corrections", {}).items()}
    random = torch.get_rng_state()
    assert bella.chunks(posterior, x, memory=2**14) == bella.chunks(posterior, x, memory=2**14)
    assert torch.equal(torch.get_rng_state(), random)
    assert_equal(posterior.state_dict(), state)
    assert_equal(grads_of(posterior), grads)
    for name, parts in heard.items():
        assert all(map(torch.equal, move.corrections[name], parts))
    assert move.hears


def test_statistics_of_batch_norms_that_train_are_restored():
    posterior = bella.full(Noisy(), 3).train()
    x, _ = problem()
    state = {name: value.clone() for name, value in posterior.state_dict().items()}
    assert any("running_mean" in name for name in state)
    bella.chunks(posterior, x, memory=2**20)
    assert_equal(posterior.state_dict(), state)


def assert_equal(found, expected):
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# ------------------------------------------------------------ fit and predict


@pytest.mark.parametrize(
    ("name", "minibatches"),
    [
        ("ensemble", "own"),
        ("ensemble", "shared"),
        ("repulsive", "own"),
        ("repulsive", "shared"),
        ("svgd", "shared"),
        ("function", "shared"),
    ],
)
def test_fit_chooses_chunks_and_learns_the_same(name, minibatches):
    options = {"transport": name, "minibatches": minibatches, "epochs": 2}
    whole, parts = make(particles=6), make(particles=6)
    assert fit(whole, **options).particles_per_pass == 6
    record = fit(parts, particles_per_pass="auto", memory_budget=SMALL, **options)
    assert record.particles_per_pass < 6
    assert_same(whole, parts, rtol=1e-4, atol=1e-5)


def test_the_chosen_number_is_that_of_a_run_that_named_it():
    chosen, named = (make(particles=6, network=Blocks(0.3)) for _ in range(2))
    record = fit(chosen, particles_per_pass="auto", memory_budget=SMALL)
    fit(named, particles_per_pass=record.particles_per_pass)
    assert_same(chosen, named)  # bit for bit: no random number was used up


def test_a_resumed_run_keeps_the_number(tmp_path, monkeypatch):
    options = {"particles_per_pass": "auto", "validation": problem(seed=1), "transport": "svgd"}
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * SMALL)
    whole = make(particles=6)
    expected = fit(whole, epochs=4, folder=tmp_path / "whole", **options)
    original = bella.training.fit.Run.run_epoch

    def stops(self, epoch, *rest):
        if epoch == 2:
            raise KeyboardInterrupt
        return original(self, epoch, *rest)

    monkeypatch.setattr(bella.training.fit.Run, "run_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(make(particles=6), epochs=4, folder=tmp_path / "stopped", **options)
    monkeypatch.undo()  # and more memory is free now
    again = make(particles=6)
    record = fit(again, epochs=4, folder=tmp_path / "stopped", **options)
    assert record.particles_per_pass == expected.particles_per_pass < 6
    assert record.history == expected.history
    assert_same(whole, again)


def test_a_budget_below_one_particle_ends_a_run_with_a_sentence():
    with pytest.raises(bella.BellaError, match="the budget is 10: raise it"):
        fit(make(), particles_per_pass="auto", memory_budget=10)
    with pytest.raises(bella.BellaError, match="particles_per_pass"):
        fit(make(), particles_per_pass="most")


def test_a_budget_without_auto_is_refused_rather_than_ignored():
    with pytest.raises(bella.BellaError, match="memory_budget is for"):
        fit(make(), memory_budget=2**20)
    with pytest.raises(bella.BellaError, match="memory is for"):
        bella.predict(make(), problem()[0], memory=2**20)


@pytest.mark.parametrize("training", [True, False])
def test_finding_out_about_the_prefix_uses_no_random_number(training):
    posterior = make(network=Blocks(0.3)).train(training)
    before = torch.get_rng_state()
    posterior.prove(problem()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_prediction_chooses_chunks_and_says_the_same():
    posterior = make(particles=6)
    x, y = problem()
    plain = bella.predict(posterior, x)
    passes = []
    posterior.layers()["head"].register_forward_hook(lambda m, args, out: passes.append(len(out)))
    found = bella.predict(posterior, x, particles_per_pass="auto", memory=3 * SMALL)
    torch.testing.assert_close(found.logits, plain.logits)
    assert max(passes[2:]) < 6 * len(x)
    loader = [(x[:8], y[:8]), (x[8:], y[8:])]
    expected = bella.evaluate(posterior, loader)
    found = bella.evaluate(posterior, loader, particles_per_pass="auto", memory=3 * SMALL)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
    with pytest.raises(bella.BellaError, match="the budget is 10"):
        bella.predict(posterior, x, particles_per_pass="auto", memory=10)


def test_values_stay_while_nothing_trains():
    posterior = make(particles=6)
    before = values(posterior)
    x, _ = problem()
    bella.chunks(posterior, {"x": x}, memory=2**14)
    assert_equal(values(posterior), before)
    assert all(p.grad is None for p in posterior.parameters())
