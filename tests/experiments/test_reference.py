"""`bella reference`: methods on problems whose posterior is known."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from bella.errors import BellaError
from bella.evaluation.reference import Draws
from bella.experiments.reference import run
from bella.experiments.reference.methods import METHODS, Budget, loss_of, made, mover, noisy
from bella.experiments.reference.page import write_page
from bella.experiments.reference.problems import PROBLEMS, problem_named

pytestmark = pytest.mark.long

BUDGET = Budget(particles=20, steps=300, draws=2000)


@pytest.fixture(scope="module")
def linear():
    return problem_named("linear", 0)


def exact(problem):
    target = problem.target
    x, y = target.x, target.y
    precision = x.mT @ x / target.variance + torch.eye(x.shape[1]).double() / target.prior_std**2
    covariance = torch.linalg.inv(precision)
    return covariance @ x.mT @ y / target.variance, covariance, precision


@pytest.mark.parametrize("name", PROBLEMS)
def test_networks_and_their_transports_have_the_target_s_density(name):
    """Loss times N, with the prior's gradient, is the gradient of minus the log density."""
    problem = problem_named(name, 0)
    target = problem.target
    posterior = made(problem, BUDGET, 2)
    for parameter in posterior.stacked_parameters().values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    move = mover(problem, posterior, "ensemble")
    loss_of(posterior, problem).backward()
    move.step()
    found = {n: p.grad * len(target.y) for n, p in posterior.stacked_parameters().items()}
    names = {"A": "layer.A", "B": "layer.B", "head": "head.values.weight"}
    theta = {
        short: posterior.stacked_parameters()[names[short]].detach().requires_grad_()
        for short in target.shapes
    }
    grads = torch.autograd.grad(-target.log_density(theta).sum(), list(theta.values()))
    for short, grad in zip(theta, grads, strict=True):
        assert torch.allclose(found[names[short]], grad, rtol=1e-8, atol=1e-8)


def test_laplace_is_the_closed_form(linear):
    mean, covariance, _ = exact(linear)
    weights = METHODS["laplace"].answer(linear, BUDGET).weights["head"].flatten(1)
    assert torch.allclose(weights.mean(0), mean, atol=4 * covariance.diagonal().max().sqrt() / 40)
    assert torch.allclose(weights.T.cov(), covariance, rtol=0.2, atol=0.02)


def test_mean_field_is_what_mean_field_is(linear):
    """Of a Gaussian posterior its means are right, and its variances those of the precision's
    diagonal: too small where weights are correlated."""
    mean, covariance, precision = exact(linear)
    said = METHODS["vi"].answer(linear, Budget(steps=1500, draws=4000))
    weights = said.weights["head"].flatten(1)
    assert torch.allclose(weights.mean(0), mean, atol=0.1)
    assert torch.allclose(weights.var(0), 1 / precision.diagonal(), rtol=0.3)
    assert (weights.var(0) / covariance.diagonal()).median() < 0.7  # its well-known shortness


def test_an_ensemble_of_a_convex_problem_is_one_point(linear):
    mean, covariance, _ = exact(linear)
    weights = METHODS["ensemble"].answer(linear, Budget(particles=4)).weights["head"].flatten(1)
    assert torch.allclose(weights, mean.expand(4, -1), atol=0.05)
    assert (weights.var(0) < 0.01 * covariance.diagonal()).all()


def test_langevin_dynamics_have_the_posterior_s_variance(linear):
    _, covariance, _ = exact(linear)
    answer = noisy(linear, Budget(particles=200, steps=200), "ensemble")
    ratio = answer.weights["head"].flatten(1).var(0) / covariance.diagonal()
    assert ratio.mean().item() == pytest.approx(1, abs=0.25)


@pytest.fixture
def results(tmp_path, linear, monkeypatch):
    mean, covariance, _ = exact(linear)
    draws = torch.distributions.MultivariateNormal(mean, covariance).sample((2, 400))
    facts = {
        "diagnostics": {"predictions": {"r_hat_max": 1.3, "ess_min": 5.0, "ess_mean": 9.0}},
        "draws": 800,
        "divergences": 0,
        "seconds": 1.0,
    }
    kept = Draws({"head": draws.unsqueeze(2)}, facts)
    monkeypatch.setattr(run, "sample_nuts", lambda *_, **__: kept)
    return run.reference(
        tmp_path,
        problems=["linear"],
        methods=["single", "laplace", "function"],
        budget=Budget(steps=200),
        progress=False,
    )


def test_the_table_says_what_holds_and_what_is_not_defined(results, tmp_path):
    page = write_page(results, tmp_path).read_text()
    rows = results["problems"]["linear"]["rows"]
    assert list(rows) == ["nuts", "single", "laplace", "function"]
    assert rows["nuts"]["total_variation"] < rows["laplace"]["total_variation"] + 0.02
    assert rows["single"]["prediction_variance"] == 0
    assert rows["laplace"]["prediction_variance"] == pytest.approx(1, abs=0.25)
    assert rows["single"]["total_variation"] > 2 * rows["laplace"]["total_variation"]
    assert "probabilities of classes" in rows["function"]["why_not"]
    assert "- function: transport='function' compares" in page
    assert "The chains have not met" in page  # the R-hat above says so
    assert (tmp_path / "reference.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "results.json").read_text())["problems"]["linear"]["rows"]
    with (tmp_path / "reference.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == list(rows)
    assert float(lines[2]["total_variation"]) == rows["laplace"]["total_variation"]


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(BellaError, match="Problem 'line' is unknown"):
        run.reference(tmp_path / "a", problems=["line"])
    with pytest.raises(BellaError, match="Method 'nuts' is unknown"):
        run.reference(tmp_path / "a", methods=["nuts"])
    with pytest.raises(BellaError, match="nothing to compare"):
        run.reference(tmp_path / "a", methods=[])
    assert not (tmp_path / "a").exists()
