"""Figures of numbers and of several labels, against dense formulas and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn
from torch.distributions import Categorical, MixtureSameFamily, Normal

import bella
from bella.errors import BellaError
from bella.metrics import labels as of_labels
from bella.metrics import regression


@pytest.fixture
def parts():
    """Means and variances of 4 particles on 7 examples, weights, and numbers."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 7, generator=generator).double()
    variances = (0.5 * torch.randn(4, 7, generator=generator)).exp().double()
    weights = torch.rand(4, 7, generator=generator).double()
    return means, variances, weights / weights.sum(0), torch.randn(7, generator=generator).double()


def mixture(means, variances, weights=None):
    weights = torch.ones_like(means) if weights is None else weights
    return MixtureSameFamily(Categorical(weights.T), Normal(means.T, variances.sqrt().T))


@pytest.mark.parametrize("weighted", [False, True])
def test_density_and_distribution_are_torch_s(parts, weighted):
    means, variances, weights, y = parts
    weights = weights if weighted else None
    theirs = mixture(means, variances, weights)
    ours = regression.log_density(y, means, variances, weights)
    torch.testing.assert_close(ours, theirs.log_prob(y), rtol=1e-12, atol=1e-12)
    ours = regression.cdf(y, means, variances, weights)
    torch.testing.assert_close(ours, theirs.cdf(y), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", [0.001, 0.05, 0.5, 0.95])
def test_quantiles_undo_the_distribution(parts, level):
    means, variances, weights, _ = parts
    y = regression.quantile(level, means, variances, weights)
    found = regression.cdf(y, means, variances, weights)
    torch.testing.assert_close(found, torch.full_like(found, level), rtol=0, atol=1e-12)


def test_one_particle_has_its_own_quantiles():
    y = regression.quantile(0.975, torch.zeros(1, 2), torch.tensor([[1.0, 4.0]]))
    assert y.tolist() == pytest.approx([1.959964, 3.919928], rel=1e-6)


def test_mutual_information_is_the_integral(parts):
    means, variances, weights, _ = parts
    x = torch.linspace(-14, 14, 200_001, dtype=torch.float64)[:, None]
    density = regression.log_density(x, means[:, None], variances[:, None], weights[:, None])
    total = -(density.exp() * density).sum(0) * (28 / 200_000)
    own = (weights * 0.5 * (2 * math.pi * math.e * variances).log()).sum(0)
    found = regression.mutual_information(means, variances, weights)
    torch.testing.assert_close(found, total - own, rtol=1e-5, atol=1e-7)


def test_particles_that_agree_have_no_mutual_information(parts):
    mean, variance = parts[0][:1].expand(3, 7), parts[1][:1].expand(3, 7)
    assert float(regression.mutual_information(mean, variance).max()) < 1e-12


def test_crps_is_its_definition(parts):
    """∫ (F(x) - 1[x >= y])² dx."""
    means, variances, weights, y = parts
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)[:, None]
    ranks = regression.cdf(x, means[:, None], variances[:, None], weights[:, None])
    expected = ((ranks - (x >= y).double()).square().sum(0) * (24 / 100_000)).mean()
    found = regression.crps(y, means, variances, weights)
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_calibrated_predictive_has_the_coverage_that_it_says():
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(40_000, generator=generator)
    for level in (0.5, 0.9, 0.95):
        assert regression.coverage(ranks, level) == pytest.approx(level, abs=0.01)
    assert regression.calibration_error(ranks) < 0.01
    sure = torch.special.ndtr(3 * torch.special.ndtri(ranks.double()))  # σ a third of what it is
    assert regression.calibration_error(sure) == pytest.approx(0.28, abs=0.02)
    assert regression.calibration_error(torch.full((5,), 0.5)) == pytest.approx(0.5)


def test_errors_are_scikit_learn_s(parts):
    mean, y = parts[0][0], parts[3]
    assert regression.rmse(mean, y) ** 2 == pytest.approx(sklearn.mean_squared_error(y, mean))
    assert regression.mae(mean, y) == pytest.approx(sklearn.mean_absolute_error(y, mean))
    assert regression.r2(mean, y) == pytest.approx(sklearn.r2_score(y, mean))
    assert regression.spearman(mean, y) == pytest.approx(stats.spearmanr(mean, y).statistic)
    assert math.isnan(regression.r2(mean, torch.ones_like(y)))
    assert math.isnan(regression.spearman(mean, torch.ones_like(y)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: regression.rmse(torch.zeros(2), torch.zeros(3)), "same examples"),
        (lambda: regression.rmse(torch.zeros(0), torch.zeros(0)), "empty"),
        (lambda: regression.mae(torch.full((1,), math.nan), torch.zeros(1)), "not finite"),
        (lambda: regression.quantile(1.0, torch.zeros(1, 1), torch.ones(1, 1)), "between 0 and 1"),
        (lambda: of_labels.f1(torch.zeros(2, 3), torch.zeros(2, 2).long()), r"\(batch, labels\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words):
    with pytest.raises(bella.BellaError, match=words):
        call()


# ------------------------------------------------------------ several labels


def test_figures_of_several_labels_are_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    probs, y = torch.rand(60, 4, generator=generator), torch.rand(60, 4, generator=generator) < 0.4
    y, said = y.long(), (probs >= 0.5).long()
    micro, macro = of_labels.f1(probs, y)
    assert micro == pytest.approx(sklearn.f1_score(y, said, average="micro"))
    assert macro == pytest.approx(sklearn.f1_score(y, said, average="macro"))
    assert of_labels.exact_match(probs, y) == pytest.approx(sklearn.accuracy_score(y, said))
    auroc = of_labels.label_auroc(probs, y)
    assert auroc == pytest.approx(sklearn.roc_auc_score(y, probs, average="macro"))


def test_labels_that_do_not_count_are_left_out():
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.6]])
    y = torch.tensor([[1, -100], [0, 1], [-100, -100]])
    assert of_labels.exact_match(probs, y) == 1
    assert of_labels.f1(probs, y) == (1, 1)
    assert np.isnan(of_labels.label_auroc(probs[:1], y[:1]))


def test_total_variation_of_gaussians_is_in_closed_form():
    """Of N(0, σ²) and N(δ, σ²) it is 2 Φ(δ / 2σ) - 1."""
    zero, one = torch.zeros(1, 3).double(), torch.ones(1, 3).double()
    shift = torch.tensor([[0.0, 1.0, 30.0]]).double()
    expected = 2 * stats.norm.cdf(shift.numpy() / (2 * 2.0)) - 1
    found = regression.total_variation(zero, 4 * one, shift, 4 * one)
    assert found == pytest.approx(expected.mean(), abs=2e-4)
    # A mixture is compared as a whole: the same two Gaussians in another order are the same.
    pair = torch.tensor([[-1.0], [2.0]]).double()
    spread = torch.tensor([[0.3], [1.5]]).double()
    assert regression.total_variation(pair, spread, pair.flip(0), spread.flip(0)) < 1e-12
    with pytest.raises(BellaError, match="same examples"):
        regression.total_variation(zero, one, zero[:, :2], one[:, :2])
