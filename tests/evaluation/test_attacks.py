"""Attacks: those of a published library on a plain network, and gradients through all particles."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from network_cases import vit
from torch import nn

import bella
from bella.data import Preprocess
from bella.evaluation.attacks import ATTACKS, attacked, fgsm, pgd, predictive_of
from bella.evaluation.evaluate import collect
from bella.prediction.predict import evaluating


def small(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 64, 4)
    ).to(dtype)


def pictures(count=12, side=8, dtype=torch.float64, classes=4):
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(count, 3, side, side, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (count,), generator=generator)


def particles(network=None, **options):
    options = {"rank": 2, "target_modules": ("0", "3"), "b_std": 0.5, "seed": 3} | options
    return bella.low_rank(network or small(), 3, **options)


# ---------------------------------------------------------------- a plain network


@pytest.fixture(scope="module")
def torchattacks():
    with warnings.catch_warnings():  # torchvision looks for its operators
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchattacks")


@pytest.mark.parametrize("budget", [0.001, 0.01, 0.03])
def test_on_a_plain_network_they_are_torchattacks_(torchattacks, budget):
    network, (x, y) = small(dtype=torch.float32).eval(), pictures(dtype=torch.float32)
    known = torchattacks.FGSM(network, eps=budget)(x, y)
    assert torch.allclose(fgsm(network, x, y, budget), known, atol=1e-6, rtol=0)
    known = torchattacks.PGD(network, eps=budget, alpha=budget / 3, steps=7, random_start=False)
    found = pgd(network, x, y, budget, steps=7, step=budget / 3, seed=None)
    assert torch.allclose(found, known(x, y), atol=1e-6, rtol=0)


def test_on_a_linear_network_the_step_is_known():
    """Of two classes with weights w the loss grows along the sign of w_other - w_right."""
    network = nn.Linear(5, 2, bias=False).double()
    x = torch.full((1, 5), 0.5, dtype=torch.double)
    y = torch.tensor([0])
    up = (network.weight[1] - network.weight[0]).sign()
    for attack in (fgsm, pgd):
        assert torch.allclose(attack(network, x, y, 0.1), (x + 0.1 * up).detach())
    inside = pgd(network, x, y, 0.1, steps=1, step=0.02, seed=None)
    assert torch.allclose(inside, (x + 0.02 * up).detach())


@pytest.mark.parametrize("attack", ATTACKS.values())
@pytest.mark.parametrize("budget", [0.0, 0.003, 0.2])
def test_pixels_stay_in_the_ball_and_in_range(attack, budget):
    x, y = pictures()
    x[0], x[1] = 0, 1
    moved = attack(small(), x, y, budget)
    assert (moved - x).abs().max() <= budget + 1e-12
    assert 0 <= moved.min() <= moved.max() <= 1
    assert torch.equal(attack(small(), x, y, budget), moved)
    assert not moved.requires_grad


def test_losses_grow_with_the_budget_and_more_by_pgd():
    network, (x, y) = small().requires_grad_(False), pictures(60)
    losses = [
        [float(F.cross_entropy(network(attack(network, x, y, b)), y)) for b in (0, 0.01, 0.03, 0.1)]
        for attack in (fgsm, pgd)
    ]
    for one in losses:
        assert one == sorted(one)
    assert losses[1][-1] >= losses[0][-1]


# ---------------------------------------------------------------- a posterior


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_the_gradient_is_that_of_the_predictive_over_a_loop_of_particles(average):
    posterior, (x, y) = particles(), pictures()
    x.requires_grad_()
    with evaluating(posterior):
        said = predictive_of(posterior, average=average)(x)
    (found,) = torch.autograd.grad(F.cross_entropy(said, y), x)
    logits = torch.stack([posterior.particle(i)(x) for i in range(3)])
    if average == "probs":
        known = logits.softmax(-1).mean(0).log()
    else:
        known = logits.mean(0).log_softmax(-1)
    (loop,) = torch.autograd.grad(F.cross_entropy(known, y), x)
    assert torch.allclose(said, known, atol=1e-10)
    assert torch.allclose(found, loop, atol=1e-10)
    assert found.abs().max() > 1e-4


def test_an_attack_on_all_hurts_all_more_than_an_attack_on_one():
    posterior, (x, y) = particles(b_std=1.5), pictures(200)
    everyone = predictive_of(posterior)
    with evaluating(posterior), torch.no_grad():
        one = fgsm(posterior.particle(0), x, y, 0.02)
        both = fgsm(everyone, x, y, 0.02)
        losses = [float(F.cross_entropy(everyone(z), y)) for z in (x, one, both)]
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("attack", ["fgsm", "pgd", partial(pgd, steps=3)])
def test_data_are_attacked_before_their_normalisation(attack):
    """A network on normalised pictures and the same one on pictures in [0, 1] are one network."""
    preprocess = Preprocess(8, mean=(100.0, 120.0, 80.0), std=(50.0, 60.0, 70.0))
    x, y = pictures(40)
    data = (preprocess.normalised(x), y)
    posterior = particles()
    found, labels = attacked(posterior, data, 0.02, attack=attack, preprocess=preprocess)

    class Inside(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, z):
            return self.network(preprocess.normalised(z))

    inside = particles(Inside(small()), target_modules=("network.0", "network.3"))
    with torch.no_grad():
        for mine, theirs in zip(inside.parameters(), posterior.parameters(), strict=True):
            mine.copy_(theirs)
    known, _ = attacked(inside, (x, y), 0.02, attack=attack)
    assert torch.equal(labels, y)
    assert torch.allclose(found.logits, known.logits, atol=1e-8)
    clean, _ = collect(posterior, data)
    still, _ = attacked(posterior, data, 0.0, attack="fgsm", preprocess=preprocess)
    assert torch.allclose(still.logits, clean.logits, atol=1e-8)
    assert found.nll(y) > clean.nll(y)


def test_a_transformer_behind_a_shared_prefix_and_its_mode():
    torch.manual_seed(0)
    posterior = bella.low_rank(
        vit(), 3, 2, ("fc1", "fc2"), modules_to_save=("classifier",), b_std=0.3
    )
    posterior.train()
    x, y = pictures(6, 16, torch.float32, classes=3)
    found, _ = attacked(posterior, (x, y), 0.03)
    assert posterior.training
    assert not any(p.grad is not None for p in posterior.parameters())
    posterior.eval()
    moving = x.clone().requires_grad_()
    logits = torch.stack([posterior.particle(i)(moving).logits for i in range(3)])
    loss = -logits.softmax(-1).mean(0).log().gather(1, y[:, None]).sum()
    (gradient,) = torch.autograd.grad(loss, moving)
    by_hand = (x + 0.03 * gradient.sign()).clamp(0, 1)
    known = bella.predict(posterior, by_hand)
    assert (found.logits - known.logits).abs().max() < 1e-3


def test_draws_of_a_stochastic_posterior_are_attacked_together():
    posterior = bella.rank1(small(), components=2)
    x, y = pictures(30)
    torch.manual_seed(0)
    found, _ = attacked(posterior, (x, y), 0.05, draws=4)
    clean, _ = collect(posterior, (x, y), draws=4)
    assert found.logits.shape == (8, 30, 4)
    assert found.nll(y) > clean.nll(y)


@pytest.fixture(scope="module")
def pooled():
    """Particles with readouts and a distance, on classes that brightness tells, and pictures."""
    x, y = pictures(60)
    x = (x / 2 + torch.arange(4)[y][:, None, None, None] / 8).clamp(0, 1)
    network = nn.Sequential(*small(), nn.Tanh(), nn.Linear(4, 4)).double()
    posterior = particles(network, target_modules=("3",), modules_to_save=("5",))
    known, others = (x[:40], y[:40]), (x[40:], y[40:])
    anchors = ["1:mean", "5:flat"]
    return bella.mixture(posterior, known, others, anchors=anchors, distance=["5:flat"]), others


def test_a_mixture_is_attacked_as_a_whole(pooled):
    mixture, (x, y) = pooled
    assert mixture.readouts
    assert mixture.distances
    clean, _ = collect(mixture, (x, y))
    still, _ = attacked(mixture, (x, y), 0.0)
    torch.testing.assert_close(still.log_probs, clean.log_probs)
    torch.testing.assert_close(still.novelty, clean.novelty)
    found, labels = attacked(mixture, (x, y), 0.03)
    with evaluating(mixture.posterior), torch.no_grad():
        alone = fgsm(predictive_of(mixture.posterior), x, y, 0.03)
    assert found.nll(labels) > bella.predict(mixture, alone).nll(y) > clean.nll(y)


def test_the_gradient_of_a_mixture_is_that_of_what_it_predicts(pooled):
    mixture, (x, y) = pooled
    say = predictive_of(mixture)
    moving = x.clone().requires_grad_()
    with evaluating(mixture.posterior):
        (found,) = torch.autograd.grad(F.nll_loss(say(moving), y, reduction="sum"), moving)

    def loss(z):
        return float(bella.predict(mixture, z).nll(y)) * len(y)

    torch.manual_seed(1)
    for way in torch.randn(3, *x.shape, dtype=x.dtype):
        slope = (loss(x + 1e-3 * way) - loss(x - 1e-3 * way)) / 2e-3  # readouts are float32
        assert slope == pytest.approx(float((found * way).sum()), rel=0.02)


def test_what_was_distilled_is_attacked_by_what_it_predicts():
    posterior, (x, y) = (
        bella.Distilled(bella.low_rank(small(), 1, 2, ("0", "3"), b_std=0.5)),
        pictures(),
    )
    still, _ = attacked(posterior, (x, y), 0.0)
    assert torch.equal(still.log_probs, bella.predict(posterior, x).log_probs)
    assert torch.equal(still.mutual_information, bella.predict(posterior, x).mutual_information)
    assert attacked(posterior, (x, y), 0.03)[0].nll(y) > still.nll(y)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_pictures_move_by_gradients_of_float32_whatever_they_are_predicted_in(precision):
    posterior, (x, y) = particles(small(dtype=torch.float32)), pictures(70, dtype=torch.float32)
    found, labels = attacked(posterior, (x, y), 0.02, precision=precision)
    with evaluating(posterior), torch.no_grad():
        moved = fgsm(predictive_of(posterior), x, y, 0.02)
    known, _ = collect(posterior, (moved, y), precision=precision)
    assert torch.equal(labels, y)
    assert torch.equal(found.logits, known.logits)
    assert not torch.equal(found.logits, collect(posterior, (moved, y))[0].logits)


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_attacked_is_refused():
    network, posterior, (x, y) = small(), particles(), pictures()
    with pytest.raises(bella.BellaError, match="in \\[0, 1\\]"):
        fgsm(network, 3 * x, y, 0.01)
    with pytest.raises(bella.BellaError, match="budget=-1"):
        pgd(network, x, y, -1)
    with pytest.raises(bella.BellaError, match="steps=0"):
        pgd(network, x, y, 0.1, steps=0)
    with pytest.raises(bella.BellaError, match="out of range"):
        fgsm(network, x, y + 4, 0.01)
    with pytest.raises(bella.BellaError, match="differentiable"):
        fgsm(lambda z: network(z.detach()).detach(), x, y, 0.01)
    with pytest.raises(bella.BellaError, match="choose 'fgsm'"):
        attacked(posterior, (x, y), 0.01, attack="fgms")
    pixels = particles(nn.Sequential(nn.Conv2d(3, 4, 1)).double(), target_modules=("0",))
    with pytest.raises(bella.BellaError, match="which axis holds the classes"):
        attacked(pixels, (x, y), 0.01)
    with pytest.raises(bella.BellaError, match="other inputs"):
        attacked(posterior, [{"input": x, "labels": y}], 0.01)
    with pytest.raises(bella.BellaError, match="not normalised by this preprocessing"):
        attacked(posterior, (9 * x, y), 0.01, preprocess=Preprocess(8))


def test_an_input_that_moves_nothing_stays():
    x, y = pictures()
    copied = copy.deepcopy(x)
    assert torch.equal(fgsm(lambda z: 0 * z.flatten(1)[:, :4], x, y, 0.1), copied)
