"""Chunks of particles from a budget: the bytes that were counted, and the gradients that remain."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn

import bella
from bella import memory
from bella.memory import LiveBytes, Need, at_once, measure, total, training_step
from helpers import adapted, batch, gradients
from layer_cases import CASES, grads_of
from test_fit import Blocks, assert_same, fit, make, problem, values

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


def forward_peak(posterior, x, count):
    step = training_step(posterior, lambda: total(posterior(x)))
    with posterior.subset(range(count)), LiveBytes() as live:
        step()
    return live.peak


@pytest.mark.parametrize("name", [name for name in CASES if "called" not in name])
def test_one_and_two_particles_tell_the_bytes_of_many(name):
    case = CASES[name]
    torch.manual_seed(0)
    posterior = case.posterior(particles=12)
    x = torch.cat([case.inputs() for _ in range(8)])
    posterior.prove(x)
    need = measure(posterior, training_step(posterior, lambda: total(posterior(x))))
    for count in (1, 2, 5, 12):
        expected = need.fixed + count * need.each
        assert forward_peak(posterior, x, count) == pytest.approx(expected, rel=0.1)


def test_a_budget_is_divided():
    need = Need(fixed=100, each=10)
    assert [need.fitting(budget, 6) for budget in (109, 110, 129, 130, 160, 10**6)] == [
        0, 1, 2, 3, 6, 6
    ]  # fmt: skip


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


def test_more_memory_gives_larger_chunks_and_no_chunk_passes_the_budget():
    posterior = adapted(particles=12)
    x, _ = batch(64)
    before = 0
    for budget in range(2**15, 2**18, 2**14):
        size = len(bella.chunks(posterior, x, memory=budget)[0])
        assert size >= before
        assert forward_peak(posterior, x, size) <= 1.02 * budget
        before = size
    assert before == 12


def test_passes_are_of_equal_size():
    posterior = adapted(particles=10)
    x, _ = batch(64)
    step = training_step(posterior, lambda: total(posterior(x)))
    posterior.prove(x)
    need = measure(posterior, step)
    assert at_once(posterior, step, need.fixed + 9 * need.each) == 5


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
    need = measure(posterior, training_step(posterior, lambda: total(posterior(x))))
    with posterior.subset(range(4)), LiveBytes() as live:
        total(posterior(x)).backward()
    assert max(live.sizes) == 4 * need.row
    monkeypatch.setattr(memory, "KEPT", 4 * need.row)
    assert [len(part) for part in bella.chunks(posterior, x)] == [4, 4, 4]


@pytest.mark.parametrize("particles", [2, 3, 500])
def test_gradients_of_all_particles_do_not_pass_for_a_pass(particles):
    posterior = adapted(particles=particles)
    x, _ = batch(64)
    posterior.prove(x)
    need = measure(posterior, training_step(posterior, lambda: total(posterior(x))))
    assert need.row == 64 * 6 * 8  # the widest activation of one particle, in float64


def test_batches_of_one_shape_are_measured_once(monkeypatch):
    measured = []

    def counted(*args):
        measured.append(1)
        return measure(*args)

    monkeypatch.setattr(memory, "measure", counted)
    posterior = adapted(particles=3).eval()
    for size in (8, 8, 4, 8):
        x, _ = batch(size)
        auto = bella.predict(posterior, x, particles_per_pass="auto")
        assert torch.equal(auto.logits, bella.predict(posterior, x).logits)
    assert len(measured) == 2


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
