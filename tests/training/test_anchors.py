"""Anchors: readouts against scikit-learn and against the stationary point of their loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bella.errors import BellaError
from bella.prediction.activations import Reading
from bella.training.anchors import (
    Activations,
    among_examples,
    choose_anchors,
    fit_anchor,
    fit_path,
    scale_of,
)

DEEP, EARLY, NOISE = Reading("b.1", "mean"), Reading("b.0", "mean"), Reading("b.0", "flat")


def drawn(count, seed, classes=3):
    """Features of which one knows half of the labels' secret, one the other half, one nothing."""
    generator = torch.Generator().manual_seed(seed)
    secret = torch.randn(count, 6, generator=generator)
    weights = torch.randn(6, classes, generator=torch.Generator().manual_seed(99))
    labels = (3 * secret @ weights).argmax(1)
    noise = torch.randn(count, 40, generator=generator)
    features = {DEEP: secret[:, :4] * 5, EARLY: secret[:, 2:] * 0.1, NOISE: noise}
    return Activations(features, labels)


@pytest.mark.parametrize(("count", "size"), [(40, 5), (20, 60)])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_readout_is_where_the_gradient_of_its_loss_vanishes(count, size, classes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, size, generator=generator, dtype=torch.double) / size**0.5
    y = torch.arange(count) % classes
    for strength, weight, bias in fit_path(x, y, classes, (1.0, 10.0)):
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        assert weight.shape == (classes, size)
        # Of two classes the difference of the logits is what has the penalty.
        penalty = weight.square().sum() if classes == 2 else weight.square().sum() / 2
        if classes == 2:
            penalty = (weight[1] - weight[0]).square().sum() / 2
        nll = F.cross_entropy(x @ weight.mT + bias, y, reduction="sum")
        gradients = torch.autograd.grad(strength * nll + penalty, (weight, bias))
        if classes == 2:  # both rows hold one parameter
            gradients = [g[1] - g[0] for g in gradients]
        assert max(float(g.abs().max()) for g in gradients) < 5e-3 * strength


def test_among_examples_the_products_are_the_same():
    x = torch.randn(7, 30, dtype=torch.double)
    z, back = among_examples(x)
    torch.testing.assert_close(z @ z.mT, x @ x.mT)
    w = torch.randn(3, z.shape[1], dtype=torch.double)
    torch.testing.assert_close(z @ w.mT, x @ (w @ back.mT @ x).mT)


def test_the_best_readings_are_chosen_and_those_side_by_side_know_more():
    train, validation = drawn(300, 0), drawn(200, 1)
    chosen = choose_anchors(train, validation, 3)
    names = [str(anchor.readout) for anchor in chosen]
    assert names[-1] == "b.0:mean+b.1:mean" or names[-1] == "b.1:mean+b.0:mean"
    assert str(NOISE) not in names
    assert len(names) == 3  # one for each of two places, and one of both
    assert chosen[-1].nll < min(anchor.nll for anchor in chosen[:-1]) - 0.1
    alone = fit_anchor([NOISE], train, validation, 3)
    assert alone.nll > 0.9
    assert alone.strength < 1  # it can only learn to say nothing
    assert len(choose_anchors(train, validation, 3, keep=2)) == 2


def test_a_readout_says_what_was_fitted_whatever_the_scale_of_its_features():
    train, validation = drawn(300, 0), drawn(200, 1)
    one = fit_anchor([DEEP, EARLY], train, validation, 3)
    scaled = {
        name: Activations({**data.features, DEEP: data.features[DEEP] * 1000}, data.labels)
        for name, data in (("train", train), ("validation", validation))
    }
    other = fit_anchor([DEEP, EARLY], scaled["train"], scaled["validation"], 3)
    torch.testing.assert_close(
        one.readout(dict(validation.features)),
        other.readout(dict(scaled["validation"].features)),
        rtol=1e-3,
        atol=1e-3,
    )
    assert scale_of(train.features[DEEP] * 7) == pytest.approx(7 * scale_of(train.features[DEEP]))


def test_a_class_without_examples_is_refused():
    train, validation = drawn(30, 0), drawn(30, 1)
    with pytest.raises(BellaError, match="no example of class 3"):
        fit_anchor([DEEP], train, validation, 4)
    with pytest.raises(BellaError, match="no activations"):
        choose_anchors(Activations({}, train.labels), validation, 3)


def test_what_all_examples_share_is_no_reading():
    """The embedding of a class token differs in its last digits alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    token = torch.randn(8, generator=generator)
    same = token + 1e-6 * torch.randn(60, 8, generator=generator)
    y = (x[:, 0] > 0).long()
    first, mean = Reading("blocks.0", "first"), Reading("blocks.0", "mean")
    both = Activations({first: same, mean: x}, y)
    chosen = choose_anchors(both.select(range(40)), both.select(range(40, 60)), 2)
    assert {r for anchor in chosen for r in anchor.readout.readings} == {mean}
    alone = Activations({first: same}, y)
    assert choose_anchors(alone.select(range(40)), alone.select(range(40, 60)), 2) == []
