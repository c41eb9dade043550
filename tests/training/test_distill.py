"""`bella.distill`: the Dirichlet's figures are right, and one particle learns what several say."""

from __future__ import annotations

import pytest
import torch
from fit_cases import assert_same, fit, make, problem, values
from torch import nn

import bella
from bella.errors import BellaError
from bella.prediction.distilled import DirichletPredictive


def test_the_figures_are_those_of_draws_from_the_dirichlet():
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 3, dtype=torch.float64) + torch.tensor([[0.0], [1], [2], [4]])
    said = DirichletPredictive(logits)
    drawn = torch.distributions.Dirichlet(logits[0].exp()).sample((400_000,))
    entropy = torch.special.entr(drawn).sum(-1).mean(0)
    torch.testing.assert_close(said.probs, drawn.mean(0), rtol=0, atol=3e-3)
    torch.testing.assert_close(said.expected_entropy, entropy, rtol=0, atol=3e-3)
    told = torch.special.entr(said.probs).sum(-1) - entropy
    torch.testing.assert_close(said.mutual_information, told, rtol=0, atol=3e-3)


def wide():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


def teacher():
    posterior = bella.low_rank(wide(), 4, 4, ("0", "2"), modules_to_save=("4",), b_std=0.3)
    fit(posterior, transport="ensemble", epochs=20, minibatches="own")
    return posterior.eval()


def test_one_particle_says_what_several_say_and_how_much_they_dispute():
    posterior = teacher()
    before = values(posterior)
    x, y = problem(128, seed=3)
    told = bella.distill(posterior, (x, y), epochs=25, learning_rate=0.02, progress=False)
    assert told.posterior.particles == 1
    assert told.posterior.network[0].base.weight is posterior.network[0].base.weight
    theirs, own = bella.predict(posterior, x), bella.predict(told, x)
    assert float((theirs.probs - own.probs).abs().mean()) < 0.04
    pairs = torch.stack([theirs.mutual_information, own.mutual_information])
    assert float(torch.corrcoef(pairs)[0, 1]) > 0.7
    assert float(own.mutual_information.mean() / theirs.mutual_information.mean()) == pytest.approx(
        1, abs=0.3
    )
    for name, value in values(posterior).items():
        assert torch.equal(value, before[name])
    figures = bella.evaluate(told, problem(seed=4), ood=problem(seed=5))
    assert figures["mutual_information"] > 0


def test_the_same_seed_gives_the_same_bits_and_the_file_the_same_words(tmp_path):
    posterior = teacher()
    one, other = (
        bella.distill(posterior, problem(), epochs=2, progress=False, seed=3) for _ in range(2)
    )
    assert_same(one.posterior, other.posterior)
    one.save(tmp_path)
    read = bella.Distilled(bella.load(tmp_path, wide()))
    x, _ = problem(seed=6)
    torch.testing.assert_close(
        bella.predict(read, x).mutual_information, bella.predict(one, x).mutual_information
    )


def test_a_mixture_can_be_the_teacher():
    mixture = bella.mixture(teacher(), problem(), problem(40, 1))
    told = bella.distill(mixture, problem(), epochs=25, learning_rate=0.02, progress=False)
    x, _ = problem(seed=2)
    gap = bella.predict(told, x).probs - bella.predict(mixture, x).probs
    assert float(gap.abs().mean()) < 0.1


def test_what_cannot_be_distilled_is_refused():
    with pytest.raises(BellaError, match="kind 'full' cannot be distilled"):
        bella.distill(bella.full(wide(), 2), problem())
    with pytest.raises(BellaError, match="epochs=0"):
        bella.distill(make(), problem(), epochs=0)
    with pytest.raises(BellaError, match="weight=-1"):
        bella.distill(make(), problem(), weight=-1)
