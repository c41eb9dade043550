"""Prediction that stops early: what runs, what is said, and what it saves and changes."""

from __future__ import annotations

import math

import pytest
import torch
from deep_cases import hugging_face, inputs
from fit_cases import Blocks
from helpers import adapted, batch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bella
from bella import metrics
from bella.evaluation.early_stop import early_stop_table
from bella.evaluation.evaluate import collect
from bella.prediction.predictive import Predictive

N, FIRST = 5, 2
BOUND = 5e-4


def blocks(particles: int = N) -> bella.Posterior:
    """A posterior with a prefix of two blocks, whose particles differ."""
    network = Blocks()
    posterior = bella.low_rank(
        network, particles, 2, (r"blocks\.2\.0",), modules_to_save=("head",), b_std=1.0
    )
    return posterior.double()


class Named(nn.Module):
    """Takes its inputs by name; some do not carry the batch."""

    def __init__(self):
        super().__init__()
        self.inner = Blocks()

    def forward(self, pixels, scale):
        return {"logits": self.inner(pixels * scale)}


X, Y = batch(40)


@pytest.fixture
def posterior():
    return blocks()


def split_by(posterior, bound=BOUND, first=FIRST):
    """Every particle's logits, and whether the first agree, by hand."""
    logits = bella.predict(posterior, X).logits
    p = logits[:first].softmax(-1)
    entropy = torch.special.entr(p).sum(-1).mean(0)
    early = torch.special.entr(p.mean(0)).sum(-1) - entropy < bound
    assert 5 < early.sum() < 35, "the bound must tell examples apart"
    return logits, early


def rows_through(posterior, run):
    """Rows of particles x examples that reached an adapted layer."""
    layer = posterior.layers()["blocks.2.0"]
    seen = []
    # A shared input opens the axis in the layer: its output has all rows.
    handle = layer.register_forward_hook(lambda m, args, output: seen.append(len(output)))
    run()  # the passes with a hook are proven
    seen.clear()
    run()
    handle.remove()
    return sum(seen)


def test_agreed_examples_are_the_mixture_of_the_first_and_others_of_all(posterior):
    logits, early = split_by(posterior)
    found = bella.predict(posterior, X, stop=BOUND)
    p = logits.softmax(-1)
    expected = torch.where(early[:, None], p[:FIRST].mean(0), p.mean(0))
    torch.testing.assert_close(found.probs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.weights.sum(0), torch.ones(len(X)).double())
    assert torch.equal(found.weights[FIRST:] == 0, early.expand(N - FIRST, -1))


def test_uncertainties_are_those_of_the_particles_that_ran(posterior):
    logits, early = split_by(posterior)
    found = bella.predict(posterior, X, stop=BOUND)
    some, every = Predictive(logits[:FIRST]), Predictive(logits)
    for name in ("entropy", "expected_entropy", "mutual_information"):
        expected = torch.where(early, getattr(some, name), getattr(every, name))
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-10, atol=1e-12)
    assert found.mutual_information.min() >= 0
    assert found.mutual_information[early].max() < BOUND


def test_averaged_logits_are_averaged_over_those_that_ran(posterior):
    logits, early = split_by(posterior)
    found = bella.predict(posterior, X, stop=BOUND, average="logits")
    expected = torch.where(early[:, None], logits[:FIRST].mean(0), logits.mean(0)).softmax(-1)
    torch.testing.assert_close(found.probs, expected, rtol=1e-12, atol=1e-12)


def test_only_the_rows_that_are_needed_reach_the_particles(posterior):
    _, early = split_by(posterior)
    passes = rows_through(posterior, lambda: bella.predict(posterior, X, stop=BOUND))
    assert passes == FIRST * len(X) + (N - FIRST) * int((~early).sum())
    found = bella.predict(posterior, X, stop=BOUND)
    assert found.saved == pytest.approx(1 - passes / (N * len(X)), abs=1e-12)


def test_a_bound_of_0_is_plain_prediction_bit_for_bit(posterior):
    plain, found = bella.predict(posterior, X), bella.predict(posterior, X, stop=0.0)
    assert torch.equal(found.logits, plain.logits)
    assert found.saved == 0
    for name in ("probs", "entropy", "mutual_information"):
        assert torch.equal(getattr(found, name), getattr(plain, name))


@pytest.mark.parametrize("first", [2, 3])
def test_without_a_bound_only_the_first_run(posterior, first):
    found = {}

    def run():
        found["it"] = bella.predict(posterior, X, stop=math.inf, first=first)

    run()  # the first time, a few rows prove how it may run
    assert rows_through(posterior, run) == first * len(X)
    with posterior.subset(range(first)):
        alone = bella.predict(posterior, X)
    torch.testing.assert_close(found["it"].probs, alone.probs, rtol=1e-12, atol=1e-12)
    assert found["it"].saved == pytest.approx(1 - first / N)


def test_all_may_go_first(posterior):
    assert bella.predict(posterior, X, stop=1.0, first=N).saved == 0


@pytest.mark.parametrize("size", [1, 2, "auto"])
def test_chunks_and_streams_stop_early_too(posterior, size):
    expected = bella.predict(posterior, X, stop=BOUND)
    for given in (X, posterior.prefix(X)):
        found = bella.predict(posterior, given, stop=BOUND, particles_per_pass=size)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-10, atol=1e-12)
        assert torch.equal(found.weights, expected.weights)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_named_inputs_stop_early_too(shared_prefix):
    posterior = bella.low_rank(
        Named(), N, 2, (r"inner\.blocks\.2\.0",), b_std=1.0, shared_prefix=shared_prefix
    ).double()
    named = {"pixels": X, "scale": torch.tensor([2.0], dtype=torch.double)}
    plain, found = bella.predict(posterior, named), bella.predict(posterior, named, stop=1e-3)
    assert 0 < found.saved < 1 - FIRST / N
    late = found.weights[-1] > 0
    torch.testing.assert_close(found.logits[:, late], plain.logits[:, late])


@pytest.mark.filterwarnings("ignore:Nothing is shared")
def test_masked_tokens_and_a_cache_of_keys_stop_early_too():
    posterior = hugging_face("gpt", False)
    tokens = inputs("gpt")
    mask = torch.ones_like(tokens)
    mask[2, 6:] = 0
    batch = {"input_ids": tokens, "attention_mask": mask}
    plain = bella.predict(posterior, batch)
    bound = float(plain.stopped(math.inf).mutual_information.median())
    found = bella.predict(posterior, batch, stop=bound, particles_per_pass=1)
    late = found.weights[-1] > 0
    assert found.saved == pytest.approx(0.5 * (~late).double().mean().item())
    assert 0 < late.sum() < 5
    torch.testing.assert_close(found.logits[:, late], plain.logits[:, late])


def test_one_doubtful_example_is_enough():
    posterior = adapted(particles=4)
    mi = bella.predict(posterior, X).stopped(math.inf).mutual_information
    bound = float(mi.topk(2).values.mean())  # below it are all but one
    plain, found = bella.predict(posterior, X), bella.predict(posterior, X, stop=bound)
    worst = int(mi.argmax())
    assert found.saved == pytest.approx(0.5 * (len(X) - 1) / len(X))
    torch.testing.assert_close(found.logits[:, worst], plain.logits[:, worst])


def test_stopping_can_be_told_from_what_all_particles_said(posterior):
    found = bella.predict(posterior, X, stop=BOUND)
    told = bella.predict(posterior, X).stopped(BOUND)
    assert torch.equal(found.weights, told.weights)
    torch.testing.assert_close(found.log_probs, told.log_probs, rtol=1e-10, atol=1e-12)
    assert metrics.disagreement(told.particle_probs, told.weights) == pytest.approx(
        metrics.disagreement(found.particle_probs, found.weights)
    )


def test_equal_weights_are_no_weights():
    logits = torch.randn(5, 9, 3, dtype=torch.double)
    plain = Predictive(logits)
    weighed = Predictive(logits, weights=torch.full((5, 9), 0.2, dtype=torch.double))
    for name in ("log_probs", "expected_entropy", "mutual_information"):
        torch.testing.assert_close(getattr(weighed, name), getattr(plain, name))
    for metric in (metrics.diversity, metrics.disagreement):
        found = metric(weighed.particle_probs, weighed.weights)
        assert found == pytest.approx(metric(plain.particle_probs))


def loader(x=X, y=Y):
    return DataLoader(TensorDataset(x, y), batch_size=16)


def test_batches_of_both_kinds_are_joined(posterior):
    parts = [bella.predict(posterior, X[:20]), bella.predict(posterior, X[20:], stop=math.inf)]
    whole = Predictive.cat(parts)
    assert whole.saved == pytest.approx(0.5 * (1 - FIRST / N))
    expected = torch.cat([part.probs for part in parts])
    torch.testing.assert_close(whole.probs, expected, rtol=1e-12, atol=1e-12)
    found, _ = collect(posterior, loader(), stop=BOUND)
    assert found.saved == pytest.approx(bella.predict(posterior, X, stop=BOUND).saved)
    assert found.tempered(2.0).saved == found.saved


def test_the_table_has_every_figure_with_and_without(posterior):
    rows = early_stop_table(
        posterior, loader(), [BOUND, math.inf], ood={"far": loader(10 * X), "near": loader(X + 0.1)}
    )
    plain, stopped, _ = rows
    assert [row["bound"] for row in rows] == [0, BOUND, math.inf]
    assert [row["saved"] for row in rows] == sorted(row["saved"] for row in rows)
    assert rows[0]["saved"] == 0
    assert rows[2]["saved"] == rows[2]["saved_far"] == pytest.approx(1 - FIRST / N)
    ood = {"far": loader(10 * X), "near": loader(X + 0.1)}
    without = bella.evaluate(posterior, loader(), ood=ood)
    with_ = bella.evaluate(posterior, loader(), ood=ood, stop=BOUND)
    for name, value in without.items():
        assert plain[name] == pytest.approx(value, nan_ok=True)
        assert stopped[name] == pytest.approx(with_[name], nan_ok=True)
        change = stopped[f"change_{name}"]
        assert change == pytest.approx(with_[name] - value, abs=1e-6, nan_ok=True)
        assert plain[f"change_{name}"] == 0 or math.isnan(value)
    assert abs(stopped["change_nll"]) > 1e-6
    assert "auroc_far_mi" in stopped


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": -0.1}, "stop=-0.1"),
        ({"stop": math.nan}, "stop=nan"),
        ({"stop": 0.1, "first": 1}, "at least 2"),
    ],
)
def test_bad_bounds_get_one_sentence(posterior, options, words):
    with pytest.raises(bella.BellaError, match=words):
        bella.predict(posterior, X, **options)


def test_draws_are_not_skipped_and_the_table_needs_others():
    stochastic = bella.rank1(Blocks(), 3).double()
    with pytest.raises(bella.BellaError, match="leave out draws"):
        bella.predict(stochastic, X, draws=2, stop=0.1)
    assert bella.predict(stochastic, X, stop=math.inf).saved == pytest.approx(1 / 3)
    with pytest.raises(bella.BellaError, match="first=5"):
        early_stop_table(blocks(), loader(), first=5)
