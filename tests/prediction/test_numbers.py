"""The predictive of numbers and of several labels, and their figures end to end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import bella
from bella.evaluation.evaluate import collect, evaluate_predictive
from bella.likelihood import nll, with_variance
from bella.metrics import regression
from bella.prediction.labels import MultiLabelPredictive
from bella.prediction.numbers import GaussianPredictive
from bella.prediction.temperature import fit_temperature


@pytest.fixture
def said():
    generator = torch.Generator().manual_seed(0)
    return GaussianPredictive(torch.randn(3, 6, 2, generator=generator).double())


def test_the_variance_is_the_mixture_s(said):
    draws = torch.distributions.Normal(said.particle_means, said.particle_variances.sqrt())
    torch.manual_seed(0)
    y = draws.sample((200_000,)).flatten(0, 1)
    torch.testing.assert_close(y.mean(0), said.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(y.var(0), said.variance, rtol=0.03, atol=0)
    torch.testing.assert_close(said.aleatoric + said.epistemic, said.variance)
    low, high = said.interval(0.9)
    inside = ((y >= low) & (y <= high)).double().mean(0)
    torch.testing.assert_close(inside, torch.full_like(inside, 0.9), rtol=0, atol=0.005)


def test_entropies_are_densities(said):
    assert (said.mutual_information > 0).all()
    torch.testing.assert_close(said.entropy, said.expected_entropy + said.mutual_information)
    torch.testing.assert_close(
        said.scaled(5.0, 10.0).entropy, said.entropy + math.log(10)
    )  # they go with the units
    torch.testing.assert_close(said.scaled(5.0, 10.0).mutual_information, said.mutual_information)


def test_a_temperature_is_a_power_of_each_density(said):
    y = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    one = GaussianPredictive(said.logits[:1])
    power = (one.log_prob(y) / 2.5).exp()
    power /= power.sum(0) * 0.001
    torch.testing.assert_close(one.tempered(2.5).log_prob(y).exp(), power, rtol=1e-6, atol=1e-12)
    with pytest.raises(bella.BellaError, match="above 0"):
        said.tempered(0.0)


def test_batches_are_joined_and_counted(said):
    whole = GaussianPredictive.cat(
        [GaussianPredictive(said.logits[:, :2]), GaussianPredictive(said.logits[:, 2:])]
    )
    assert torch.equal(whole.logits, said.logits)
    y = torch.tensor([0.0, math.nan, 1, 2, 3, 4]).double()
    counted, kept = said.counted(y)
    assert kept.tolist() == [0, 1, 2, 3, 4]
    assert counted.logits.shape == (3, 5, 2)
    assert said.nll(y) == pytest.approx(-counted.log_prob(kept).mean().item())
    with pytest.raises(bella.BellaError, match="average"):
        GaussianPredictive(said.logits, "logits")


def line(count, seed=0):
    """y = 3 x₀ - 2 + noise of standard deviation 0.5; and x far from what was seen."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, 3 * x[:, 0] - 2 + 0.5 * torch.randn(count, generator=generator)


@pytest.mark.parametrize("variance", ["learned", "of each example"])
def test_regression_from_fit_to_calibrated_intervals(variance):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1 + (variance[0] == "o")))
    if variance == "learned":
        with_variance(network, "2")
    else:
        network.likelihood = "gaussian"
    posterior = bella.low_rank(network, 3, 4, ("0",), modules_to_save=("2",), b_std=0.1)
    record = bella.fit(
        posterior,
        line(800),
        validation=line(200, 1),
        epochs=16,
        batch_size=80,
        learning_rate=0.05,
        transport="ensemble",
        progress=False,
    )
    assert set(record.history[-1]) >= {"validation_nll", "validation_rmse"}
    found = bella.evaluate(
        posterior, line(1000, 2), ood=(line(100)[0] * 4, torch.full((100,), math.inf))
    )
    assert found["rmse"] == pytest.approx(0.5, abs=0.08)
    assert found["nll"] == pytest.approx(math.log(0.5) + 1.4189, abs=0.12)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.05)
    assert found["calibration_error"] < 0.05
    assert found["r2"] > 0.96
    assert found["auroc_ood_mi"] > 0.6
    assert "rmse_ood" not in found
    predictive = bella.predict(posterior, line(5)[0], likelihood="gaussian")
    assert predictive.mean.shape == (5,)


def test_the_figures_are_those_of_the_pieces(said):
    y = torch.randn(6).double()
    found = evaluate_predictive(said, y, ood={"far": (said.scaled(0, 3.0), y)})
    assert found["rmse"] == regression.rmse(said.mean, y)
    assert found["nll"] == said.nll(y)
    assert found["auroc_far_entropy"] > 0.5
    assert found["rmse_far"] == regression.rmse(3 * said.mean, y)


def test_the_temperature_of_numbers_mends_the_variance():
    y = line(3000)[1]
    sure = torch.stack((torch.zeros(3000), torch.full((3000,), -2.0)), -1).expand(2, 3000, 2)
    predictive = GaussianPredictive(sure.double())
    scale = fit_temperature(predictive, y)
    assert scale == pytest.approx(float(y.double().square().mean() * math.exp(2)), rel=1e-5)
    assert predictive.tempered(scale).nll(y) < predictive.nll(y)


# ------------------------------------------------------------ several labels


def several(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, (x[:, :3] > 0).long()


def test_several_labels_from_fit_to_figures():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    posterior = bella.low_rank(network, 3, 2, ("0",), modules_to_save=("2",), b_std=0.1)
    x, y = several(300)
    y[:5, 1] = -100
    bella.fit(
        posterior,
        (x, y),
        validation=several(100, 1),
        likelihood="bernoulli",
        epochs=12,
        batch_size=50,
        learning_rate=0.05,
        transport="ensemble",
        progress=False,
    )
    predictive, labels = collect(posterior, several(500, 2), likelihood="bernoulli")
    assert predictive.label_probs.shape == labels.shape == (500, 3)
    found = evaluate_predictive(predictive, labels)
    assert found["accuracy"] > 0.93
    assert found["exact_match"] > 0.8
    assert min(found["f1_macro"], found["auroc_macro"]) > 0.93
    losses = nn.functional.binary_cross_entropy(predictive.label_probs, labels.float())
    assert found["nll"] == pytest.approx(float(losses), rel=1e-5)
    assert (predictive.mutual_information >= 0).all()
    assert predictive.entropy.shape == (500, 3)
    scale = fit_temperature(predictive, labels)
    assert predictive.tempered(scale).nll(labels) <= found["nll"] + 1e-9
    stopped = bella.predict(posterior, several(8)[0], likelihood="bernoulli", stop=1e9)
    assert stopped.saved == pytest.approx(1 / 3)


def test_a_label_is_two_classes():
    z = torch.randn(4, 5, 3).double()
    predictive = MultiLabelPredictive(torch.stack((torch.zeros_like(z), z), -1))
    torch.testing.assert_close(predictive.label_probs, z.sigmoid().mean(0))
    y = torch.randint(0, 2, (5, 3))
    expected = nn.functional.binary_cross_entropy(z.sigmoid().mean(0), y.double())
    assert predictive.nll(y) == pytest.approx(float(expected))


# ------------------------------------------------------------ laplace


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_laplace_around_numbers_and_several_labels(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2 if kind[0] == "g" else 3))
    network.likelihood = kind
    trained = bella.low_rank(network, 1, 2, ("0",), modules_to_save=("2",))
    data = line(60) if kind == "gaussian" else several(60)
    bella.fit(trained, data, epochs=5, learning_rate=0.03, transport="ensemble", progress=False)
    loader = [data]
    posterior = bella.laplace(trained, loader, prior_precision="validation", validation=loader)
    predictive = bella.predict(posterior, data[0], draws=20)
    assert type(predictive) is (GaussianPredictive if kind == "gaussian" else MultiLabelPredictive)
    assert (predictive.mutual_information > 0).any()
    with torch.no_grad():
        own = nll(trained(data[0]), data[1], likelihood=kind) * data[1].numel()
    assert posterior.settings["log_likelihood"] == pytest.approx(-float(own), rel=1e-5)


def test_laplace_of_means_has_the_noise_that_is_said():
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    trained = bella.low_rank(network, 1, 1, ("0",), modules_to_save=("2",))
    posterior = bella.laplace(trained, [line(30)], likelihood="gaussian", variance=0.25)
    predictive = bella.predict(posterior, line(4)[0], draws=7)
    assert torch.allclose(predictive.particle_variances, torch.tensor(0.25))
    assert predictive.logits.shape == (7, 4, 2)
    assert bella.evaluate(posterior, line(20))["rmse"] > 0
