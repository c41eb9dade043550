"""Linear probes, and how alike particles are."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import adapted, changes, mlp
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

import bella
from bella.evaluation.similarity import weight_similarity
from bella.training.probe import (
    STRENGTHS,
    bootstrap,
    choose_strength,
    features_of,
    fit_probe,
    stacked,
    start_heads,
)


def features(classes, count=90):
    generator = torch.Generator().manual_seed(classes)
    x = torch.randn(count, 6, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(count, generator=generator)).argsort().argsort()
    return x, y * classes // count


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns_logistic_regression(classes):
    x, y = features(classes)
    probe = fit_probe((x, y), 0.1)
    scaled = (x.double() / x.var(0).mean().sqrt()).numpy()
    model = LogisticRegression(C=0.1, max_iter=10_000, tol=1e-9).fit(scaled, y.numpy())
    expected = torch.from_numpy(model.predict_proba(scaled)).float()
    torch.testing.assert_close(probe.logits(x)[0].softmax(-1), expected, rtol=1e-4, atol=1e-5)
    assert probe.weight.shape == (classes, 6)


@pytest.mark.parametrize("classes", [2, 3])
def test_what_all_features_have_in_common_costs_nothing_and_changes_nothing(classes):
    """Features of a network are far from zero, which leads a solver along one direction."""
    x, y = features(classes)
    one, far = fit_probe((x, y), 0.1), fit_probe((x + 50, y), 0.1)
    torch.testing.assert_close(far.logits(x + 50), one.logits(x), rtol=0, atol=1e-3)
    torch.testing.assert_close(far.weight, one.weight, rtol=0, atol=1e-4)


def test_rounding_of_features_does_not_move_a_probe():
    x, y = features(2)
    x = torch.cat([x, x @ torch.randn(6, 40, generator=torch.Generator().manual_seed(1))], 1)
    one, other = fit_probe((x, y), 10.0), fit_probe((x * (1 + 1e-6), y), 10.0)
    for a, b in zip(one.logits(x)[0], other.logits(x)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_feature_that_hardly_spoke_in_training_cannot_shout_later():
    x, y = features(2)
    speaks_once = torch.zeros(len(x), 1)
    speaks_once[0] = 0.01
    plain, more = fit_probe((x, y), 0.1), fit_probe((torch.cat([x, speaks_once], 1), y), 0.1)
    loud = torch.cat([x, torch.ones_like(speaks_once)], 1)
    torch.testing.assert_close(more.logits(loud), plain.logits(x), atol=0.1, rtol=0)


def test_the_strength_is_the_best_on_validation_data():
    x, y = features(2)
    held = features(2, 400)
    chosen = choose_strength((x, y), held)

    def loss(strength):
        logits = fit_probe((x, y), strength).logits(held[0])[0]
        return torch.nn.functional.cross_entropy(logits, held[1])

    assert all(loss(chosen) <= loss(other) for other in STRENGTHS)


def test_resampled_probes_differ_and_repeat_with_their_seed():
    data = features(2)
    first, again, other = (bootstrap(data, 0.1, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.allclose(first[0].weight, first[1].weight)
    assert not torch.allclose(first[0].weight, other[0].weight)


def test_a_resample_that_lost_a_class_is_drawn_again():
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0] * 10 + [1, 2])  # most resamples lack a class
    found = bootstrap((x, y), 0.1, 8, 0)
    assert len(found) == 8
    assert all(probe.weight.shape == (3, 6) for probe in found)


def test_features_are_what_arrives_at_the_head():
    network = mlp(dtype=torch.float32)
    x, y = torch.randn(7, network[0].in_features), torch.arange(7) % 3
    found, labels = features_of(network, "2", DataLoader(TensorDataset(x, y), batch_size=3))
    torch.testing.assert_close(found, network[1](network[0](x)).detach())
    assert torch.equal(labels, y)
    assert not network[2]._forward_pre_hooks


def test_probes_start_the_heads_of_particles():
    x, y = features(3)
    posterior = bella.low_rank(mlp(dtype=torch.float32), 2, 2, ("0",), modules_to_save=("2",))
    probes = bootstrap((x, y), 0.1, 2, 0)
    parameters = stacked(posterior)
    start_heads(parameters, "2", probes)
    for i, probe in enumerate(probes):
        assert torch.equal(posterior.particle(i)[2].weight, probe.weight)
        assert torch.equal(posterior.particle(i)[2].bias, probe.bias)
    with pytest.raises(bella.BellaError, match="linear head"):
        start_heads(parameters, "2", probes[:1])
    with pytest.raises(bella.BellaError, match="linear head"):
        start_heads(parameters, "1", probes)


def test_similarity_is_the_mean_cosine_of_the_changes():
    posterior = adapted()
    flat = torch.cat([delta.flatten(1) for delta in changes(posterior)], 1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    cosine = unit @ unit.mT
    expected = cosine[~torch.eye(4, dtype=torch.bool)].mean().item()
    assert weight_similarity(posterior) == pytest.approx(expected)
    assert math.isnan(weight_similarity(adapted(particles=1)))
    assert math.isnan(weight_similarity(adapted(b_std=0.0)))
