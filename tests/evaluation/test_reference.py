"""The sampler beside closed forms, and the measures beside answers by hand."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.distributions import Categorical, Normal

from bella.errors import BellaError, MissingExtraError
from bella.evaluation import reference
from bella.evaluation.reference import (
    Answer,
    Draws,
    Target,
    answer_of,
    check_density,
    compare,
    sample_nuts,
    variance_ratio,
)
from bella.prediction.predictive import Predictive

G = torch.Generator().manual_seed(0)
ASKED = {"chains": 4, "warmup": 200, "draws": 1000}


def numbers(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def line():
    """Three weights: the posterior is a Gaussian."""
    x = numbers(20, 3) @ torch.tensor([[1.0, 0.8, 0], [0, 1, 0], [0, 0, 1]]).double()
    y = x @ torch.tensor([1.0, -1.0, 0.5]).double() + 0.7 * numbers(20)
    return Target(
        x=x, y=y, test_x=numbers(5, 3), test_y=numbers(5), outputs=1, prior_std=1.5, variance=0.5
    )


def layered():
    return Target(
        x=numbers(12, 4),
        y=torch.randint(3, (12,), generator=G),
        test_x=numbers(6, 4),
        test_y=torch.randint(3, (6,), generator=G),
        outputs=3,
        prior_std=0.7,
        base=numbers(5, 4),
        rank=2,
    )


def exact(target):
    """Mean and covariance of the weights of a linear regression."""
    x, y = target.x, target.y
    precision = x.mT @ x / target.variance + torch.eye(x.shape[1]).double() / target.prior_std**2
    covariance = torch.linalg.inv(precision)
    return covariance @ x.mT @ y / target.variance, covariance


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuts")
    target, told = line(), []
    draws = sample_nuts(target, folder, **ASKED, told=lambda: told.append(1))
    assert len(told) == reference.BARS
    return target, folder, draws


@pytest.mark.slow
def test_the_sampler_finds_the_closed_form(sampled):
    target, _, draws = sampled
    mean, covariance = exact(target)
    weights = draws.joined["head"].flatten(1)
    assert len(weights) == 4000
    error = (covariance.diagonal() / 1000).sqrt()  # of some 1,000 independent draws
    assert ((weights.mean(0) - mean).abs() < 4 * error).all()
    assert torch.allclose(weights.T.cov(), covariance, rtol=0.15, atol=4e-3)
    assert draws.converged
    assert draws.facts["divergences"] == 0
    assert draws.facts["diagnostics"]["head"]["ess_min"] > 500


@pytest.mark.slow
def test_draws_that_a_folder_keeps_are_not_drawn_again(sampled, tmp_path, monkeypatch):
    target, folder, draws = sampled
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(reference, "run", lambda *_: pytest.fail("it sampled"))
    again = sample_nuts(target, tmp_path, **ASKED)
    assert torch.equal(again.joined["head"], draws.joined["head"])
    for other in ({"seed": 1}, {"warmup": 200}):
        with pytest.raises(pytest.fail.Exception, match="it sampled"):
            sample_nuts(target, tmp_path, **ASKED | other)


DENSITY = """
import json, pathlib, sys
import jax
jax.config.update("jax_enable_x64", True)
from safetensors.numpy import load_file
from bella.evaluation.nuts import log_density_of
folder = pathlib.Path(sys.argv[1])
theta, arrays = load_file(folder / "theta"), load_file(folder / "arrays")
density = log_density_of(arrays, json.loads((folder / "asked").read_text()))
print(json.dumps(jax.vmap(density)(theta).tolist()))
"""


@pytest.mark.parametrize("made", [line, layered])
def test_the_sampler_has_the_density_of_the_networks(made, tmp_path):
    target = made()
    theta = {name: numbers(3, *shape) for name, shape in target.shapes.items()}
    arrays = {"x": target.x, "y": target.y}
    if target.base is not None:
        arrays["base"] = target.base
    save_file(theta, tmp_path / "theta")
    save_file(arrays, tmp_path / "arrays")
    asked = {"prior_std": target.prior_std, "variance": target.variance}
    (tmp_path / "asked").write_text(json.dumps(asked))
    command = [sys.executable, "-c", DENSITY, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = torch.tensor(json.loads(said), dtype=torch.float64)
    assert torch.allclose(found, target.log_density(theta), rtol=1e-10, atol=1e-10)


def test_draws_of_another_density_are_refused(tmp_path):
    target = layered()
    theta = {name: numbers(2, 3, *shape) for name, shape in target.shapes.items()}
    density = target.log_density({name: x.flatten(0, 1) for name, x in theta.items()})
    kept = Draws(theta | {"log_density": density.view(2, 3)}, {})
    check_density(target, kept, tmp_path)
    wrong = Draws(theta | {"log_density": density.view(2, 3) + 1e-3}, {})
    with pytest.raises(BellaError, match=r"another log density .* 0\.001 nats"):
        check_density(target, wrong, tmp_path)


def test_the_density_is_that_of_its_distributions():
    for target in (line(), layered()):
        theta = {name: numbers(2, *shape) for name, shape in target.shapes.items()}
        for draw, found in enumerate(target.log_density(theta)):
            one = {name: value[draw] for name, value in theta.items()}
            x = target.x
            if target.base is not None:
                x = torch.tanh(x @ (target.base + one["B"] @ one["A"]).T)
            said = x @ one["head"].T
            if target.variance is None:
                fit = Categorical(logits=said).log_prob(target.y)
            else:
                fit = Normal(said[:, 0], target.variance**0.5).log_prob(target.y)
            prior = sum(Normal(0.0, target.prior_std).log_prob(v).sum() for v in one.values())
            assert found.item() == pytest.approx((fit.sum() + prior).item(), rel=1e-8)


def test_the_sampler_says_when_it_cannot(tmp_path, monkeypatch):
    target = line()
    with pytest.raises(BellaError, match="chains=1: give at least 2"):
        sample_nuts(target, tmp_path, chains=1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BellaError, match="ended without draws"):
        sample_nuts(target, tmp_path, **ASKED)
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(MissingExtraError, match=r"bella-bnn\[reference\]"):
        sample_nuts(target, tmp_path, **ASKED)


def test_a_gauge_changes_nothing_that_is_compared():
    target = layered()
    theta = {name: numbers(4, *shape) for name, shape in target.shapes.items()}
    G2 = numbers(2, 2)
    turned = theta | {"A": G2 @ theta["A"], "B": theta["B"] @ torch.linalg.inv(G2)}
    one, other = answer_of(target, theta), answer_of(target, turned)
    figures = compare(one, other, target.test_y)
    assert figures["total_variation"] == pytest.approx(0, abs=1e-9)
    assert figures["agreement"] == 1
    assert figures["weight_variance"] == pytest.approx(1)
    assert figures["prediction_variance"] == pytest.approx(1)


def test_measures_by_hand():
    half, sure = math.log(0.5), math.log(0.9)
    one = Predictive(torch.tensor([[[half, half]], [[sure, math.log(0.1)]]]))  # mean .7, .3
    other = Predictive(torch.tensor([[[math.log(0.2), math.log(0.8)]]]))
    weights = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    wide = torch.tensor([[0.0, 0.0], [4.0, 2.0]])
    figures = compare(
        Answer(one, {"head": weights}),
        Answer(Predictive(torch.cat([other.logits, one.logits])), {"head": wide}),
        torch.tensor([0]),
    )
    # The reference is (.2 + .5 + .9) / 3 = .5333.
    assert figures["total_variation"] == pytest.approx(0.7 - 1.6 / 3, abs=1e-6)
    assert figures["agreement"] == 1
    assert figures["nll"] == pytest.approx(-math.log(0.7), abs=1e-6)
    assert figures["weight_variance"] == pytest.approx((2 / 8 + 0) / 2)
    twice = Answer(Predictive(other.logits.repeat(2, 1, 1)), {})
    assert compare(Answer(one, {}), twice, torch.tensor([0]))["agreement"] == 0
    assert math.isnan(
        compare(Answer(one, {}), Answer(one, {}), torch.tensor([0]))["weight_variance"]
    )


def test_one_particle_has_no_variance():
    assert variance_ratio(numbers(1, 4), numbers(9, 4)) == 0
