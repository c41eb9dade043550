"""Pools of groups: weights, temperatures and distances against known answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bella.errors import BellaError
from bella.prediction.pool import Pool, cross_fitted, em_weights, fit_pool, log_pool_weights
from bella.prediction.predictive import Predictive
from bella.prediction.temperature import fit_temperature

COUNT, CLASSES = 60, 4


def drawn(count=COUNT, seed=0, members=(3, 1, 2)):
    """Groups of members that know more or less of the labels, in float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    truth = F.one_hot(labels, CLASSES).double()
    groups = []
    for strength, size in zip((2.0, 1.0, 3.0), members, strict=True):
        noise = torch.randn(size, count, CLASSES, generator=generator, dtype=torch.double)
        groups.append(strength * truth + 2 * noise)
    return groups, labels


def test_em_has_the_closed_form_of_groups_that_answer_for_different_examples():
    scores = torch.full((2, 10), -60.0, dtype=torch.double)
    scores[0, :7] = 0.0
    scores[1, 7:] = 0.0
    assert em_weights(scores).tolist() == pytest.approx([7.5 / 11, 3.5 / 11], abs=1e-12)


def test_em_finds_the_maximum_of_a_grid():
    groups, labels = drawn(members=(1, 1, 1))
    scores = torch.stack([g[0].log_softmax(-1)[torch.arange(COUNT), labels] for g in groups])[:2]
    w = torch.linspace(1e-4, 1 - 1e-4, 200_001, dtype=torch.double)
    both = torch.stack([w, 1 - w]).log()
    posterior = 0.5 * both.sum(0)
    for n in range(COUNT):
        posterior += torch.logsumexp(both + scores[:, n, None], 0)
    assert float(em_weights(scores)[0]) == pytest.approx(float(w[posterior.argmax()]), abs=1e-5)


def test_em_of_groups_that_say_the_same_weighs_them_the_same():
    assert em_weights(torch.zeros(5, 7)).tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("sd", [0.05, 0.2, 1.0])
def test_the_temperature_is_the_maximum_a_posteriori_of_a_grid(sd):
    (particles, *_), labels = drawn(20)
    log_t = torch.linspace(-2, 2, 40_001, dtype=torch.double)
    objective = log_t.square() / (2 * sd**2)
    for n in range(20):
        each = torch.log_softmax(particles[:, n, None] / log_t.exp()[:, None], -1)[..., labels[n]]
        objective -= torch.logsumexp(each, 0) - math.log(3)
    best = float(log_t[objective.argmin()].exp())
    assert fit_temperature(particles, labels, sd=sd) == pytest.approx(best, rel=2e-4)


def test_a_narrow_prior_holds_the_temperature_and_a_wide_one_lets_it_go():
    (particles, *_), labels = drawn()
    assert fit_temperature(particles, labels, sd=1e-4) == pytest.approx(1, abs=1e-3)
    plain = fit_temperature(particles, labels)
    assert fit_temperature(particles, labels, sd=1e4) == pytest.approx(plain, rel=1e-6)
    with pytest.raises(BellaError, match="sd=0"):
        fit_temperature(particles, labels, sd=0)


def test_the_weights_of_a_log_pool_are_where_the_gradient_vanishes():
    groups, labels = drawn()
    log_probs = torch.stack([g.log_softmax(-1).mean(0) for g in groups])
    around = em_weights(log_probs[:, torch.arange(COUNT), labels])
    found = log_pool_weights(log_probs, labels, around)

    u = found.log().requires_grad_()
    pooled = sum(u[g].exp() * log_probs[g] for g in range(3))
    nll = -pooled.log_softmax(-1)[torch.arange(COUNT), labels].sum()
    objective = nll + ((u - around.log()) ** 2).sum() / (2 * 0.2**2)
    (gradient,) = torch.autograd.grad(objective, u)
    assert float(gradient.abs().max()) < 1e-4  # of a sum over all examples
    assert float((found - around).abs().max()) > 0.01  # it did move


@pytest.mark.parametrize("kind", ["linear", "log"])
def test_a_pool_is_the_dense_formula(kind):
    groups, labels = drawn()
    pool = fit_pool(groups, labels, kind=kind)
    probs = torch.zeros(COUNT, CLASSES, dtype=torch.double)
    for group, w, t in zip(groups, pool.weights, pool.temperatures, strict=True):
        members = (group / t).softmax(-1)
        probs += w * (members if kind == "linear" else members.log()).mean(0)
    probs = (probs if kind == "linear" else probs.exp()) ** (1 / pool.temperature)
    probs /= probs.sum(-1, keepdim=True)
    said = pool(groups)
    torch.testing.assert_close(said.probs, probs, rtol=1e-10, atol=1e-12)
    assert sum(pool.weights) == pytest.approx(1, abs=1e-12)
    # The last temperature is the maximum a posteriori given all that comes before it.
    before = Predictive(said.logits, said.average, said.weights)
    sharper = 1.0 if kind == "linear" else float(free_weights(groups, labels, pool).sum())
    last = fit_temperature(sharper * before.log_probs, labels, sd=0.2)
    assert pool.temperature == pytest.approx(last / sharper, rel=1e-6)


def free_weights(groups, labels, pool):
    tempered = [g / t for g, t in zip(groups, pool.temperatures, strict=True)]
    linear = torch.stack([Predictive(g).log_probs for g in tempered])
    around = em_weights(linear[:, torch.arange(COUNT), labels])
    return log_pool_weights(
        torch.stack([g.log_softmax(-1).mean(0) for g in tempered]), labels, around
    )


@pytest.mark.parametrize("kind", ["linear", "log"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_what_the_members_dispute_is_what_an_answer_would_tell_of_who_is_right(kind, temperature):
    groups, labels = drawn()
    said = replace(fit_pool(groups, labels, kind=kind), temperature=temperature)(groups)
    mixed = said.weights[..., None] * said.particle_probs
    right = mixed / mixed.sum(0)  # r_i(y)
    before = (right * said.probs).sum(-1, keepdim=True)
    told = (said.probs * (right * (right / before).log()).sum(0)).sum(-1)
    torch.testing.assert_close(said.mutual_information, told, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(said.expected_entropy + told, said.entropy, rtol=1e-8, atol=1e-12)
    assert bool((said.expected_entropy >= 0).all())


def test_a_pool_that_no_temperature_changes_disputes_what_its_members_do_with_their_weights():
    groups, labels = drawn()
    said = replace(fit_pool(groups, labels), temperature=1.0)(groups)
    p = (said.weights[..., None] * said.particle_probs).sum(0)
    entropy = -(p * p.log()).sum(-1)
    each = -(said.particle_probs * said.particle_probs.log()).sum(-1)
    torch.testing.assert_close(
        said.mutual_information, entropy - (said.weights * each).sum(0), rtol=1e-8, atol=1e-10
    )


def test_two_sure_members_of_a_sharpened_pool_dispute_all_that_is_unsure_and_no_more():
    logits = torch.tensor([[[40.0, 0.0]], [[0.0, 40.0]]], dtype=torch.double)
    weights = torch.tensor([[0.9], [0.1]], dtype=torch.double)
    said = Predictive(logits, "probs", weights, temperature=torch.tensor([0.5]).double())
    p = 0.81 / 0.82
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert float(said.entropy) == pytest.approx(entropy, rel=1e-12)
    assert float(said.mutual_information) == pytest.approx(entropy, rel=1e-12)
    assert float(said.expected_entropy) == pytest.approx(0, abs=1e-14)


def test_members_that_agree_dispute_nothing_at_any_temperature():
    (_, one, _), _ = drawn()
    weights = torch.tensor([0.5, 0.5, 0.0], dtype=torch.double)[:, None].expand(3, COUNT)
    stranger = torch.cat([one, one, 3 - one])  # who does not count
    heat = torch.linspace(0.1, 9, COUNT, dtype=torch.double)
    said = Predictive(stranger, "probs", weights, temperature=heat)
    assert float(said.mutual_information.max()) < 1e-15
    torch.testing.assert_close(said.expected_entropy, said.entropy)


def test_a_pool_of_one_particle_is_temperature_scaling():
    (_, one, _), labels = drawn()
    pool = fit_pool([one], labels, sd=1e4)
    torch.testing.assert_close(
        pool([one]).probs,
        (one[0] / fit_temperature(one[0], labels)).softmax(-1),
        rtol=1e-5,
        atol=1e-7,
    )


def test_the_pool_is_better_than_its_best_group_on_fresh_data():
    groups, labels = drawn(400)
    fresh, truth = drawn(4000, seed=1)
    pooled = fit_pool(groups, labels)(fresh).nll(truth)
    alone = [fit_pool([g], labels)([f]).nll(truth) for g, f in zip(groups, fresh, strict=True)]
    assert pooled < min(alone) - 0.05


def test_the_distance_is_standardised_and_makes_far_examples_doubtful():
    groups, labels = drawn()
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(2, COUNT, generator=generator, dtype=torch.double) * 3 - 5
    pool = fit_pool(groups, labels, distances=raw)
    near = pool(groups, raw)
    assert float(near.distance.mean()) == pytest.approx(0, abs=1e-12)
    assert float(near.distance.std()) == pytest.approx(1, rel=1e-12)
    scaled = (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True)
    expected = scaled.mean(0) / scaled.mean(0).std()
    torch.testing.assert_close(near.distance, expected)
    bare = fit_pool(groups, labels)(groups)
    log_entropy = bare.entropy.log()
    standard = (log_entropy - log_entropy.mean()) / log_entropy.std()
    normal = torch.distributions.Normal(0.0, 1.0)
    chances = (1 - normal.cdf(expected)) * (1 - normal.cdf(standard))
    torch.testing.assert_close(near.novelty, -chances.log(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        near.temperature, pool.temperature * (1 + (expected - 2).clamp_min(0)).sqrt()
    )
    ordinary = expected < 2
    torch.testing.assert_close(near.probs[ordinary], bare.probs[ordinary])

    far = pool(groups, raw + 30)
    assert bool((far.entropy > bare.entropy).all())
    assert bool((far.novelty > near.novelty).all())


def test_a_figure_on_validation_data_is_of_pools_that_did_not_see_the_example():
    groups, labels = drawn()
    said = cross_fitted(groups, labels)
    other = labels.clone()
    other[11] = (other[11] + 1) % CLASSES
    changed = cross_fitted(groups, other)
    assert torch.equal(said.probs[11], changed.probs[11])
    assert not torch.equal(said.probs, changed.probs)
    plain = fit_pool(groups, labels)(groups)
    assert plain.nll(labels) < said.nll(labels) < plain.nll(labels) + 0.1


def test_a_pool_is_kept_as_json():
    groups, labels = drawn()
    pool = fit_pool(groups, labels, kind="log", distances=torch.randn(1, COUNT))
    assert Pool.from_json(json.loads(json.dumps(pool.to_json()))) == pool
    for damage in ({"kind": "other"}, {"weights": [1.0]}, {"temperature": -1.0}, {"distances": 3}):
        with pytest.raises(BellaError, match="damaged"):
            Pool.from_json(pool.to_json() | damage)


def test_what_does_not_fit_is_refused():
    groups, labels = drawn()
    pool = fit_pool(groups, labels, distances=torch.randn(1, COUNT))
    with pytest.raises(BellaError, match="3 groups, and 2 came"):
        pool(groups[:2], torch.zeros(1, COUNT))
    with pytest.raises(BellaError, match="1 distances, and 0 came"):
        pool(groups)
    with pytest.raises(BellaError, match="choose 'linear' or 'log'"):
        fit_pool(groups, labels, kind="harmonic")
    with pytest.raises(BellaError, match="at least one group"):
        fit_pool([], labels)
    with pytest.raises(BellaError, match="give at least 4"):
        cross_fitted([g[:, :3] for g in groups], labels[:3])
    with pytest.raises(BellaError, match="does not stop early"):
        pool(groups, torch.zeros(1, COUNT)).stopped(0.1)


def test_rows_batches_and_devices_keep_what_each_example_has():
    groups, labels = drawn()
    said = fit_pool(groups, labels, distances=torch.randn(1, COUNT))(groups, torch.randn(1, COUNT))
    halves = Predictive.cat([said.rows(torch.arange(30)), said.rows(torch.arange(30, COUNT))]).cpu()
    for name in ("probs", "mutual_information", "distance", "novelty", "temperature"):
        torch.testing.assert_close(getattr(halves, name), getattr(said, name))
    mask = labels == 0
    torch.testing.assert_close(said.positions(mask).probs, said.probs[mask])
    with pytest.raises(BellaError, match="others have none"):
        Predictive.cat([said, Predictive(said.logits)])
