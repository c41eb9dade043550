"""Conformal sets: the scores by hand, coverage as promised, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin

import bella
from bella.evaluation.conformal import conformal, coverage_range, set_figures


def answers(count, seed=0, classes=5, sharp=2.0, shift=0.0):
    """Probabilities that are wrong in their confidence, and labels drawn from other ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.double)
    truth = (logits + shift * torch.randn(count, classes, generator=generator)).softmax(-1)
    return (sharp * logits).softmax(-1), torch.multinomial(truth, 1, generator=generator).flatten()


def test_scores_by_hand():
    probs = torch.tensor([[0.5, 0.2, 0.2, 0.1]])
    labels = torch.tensor([0])
    made = {score: conformal(probs, labels, miss=0.6, score=score) for score in ("lac", "aps")}
    assert made["lac"].scores(probs).flatten().tolist() == pytest.approx([0.5, 0.8, 0.8, 0.9])
    assert made["aps"].scores(probs).flatten().tolist() == pytest.approx([0.5, 0.7, 0.7, 1.0])
    half = torch.tensor([0.5])
    drawn = conformal(probs, labels, miss=0.6, score="aps", uniform=half)
    assert drawn.scores(probs, half).flatten().tolist() == pytest.approx([0.25, 0.6, 0.6, 0.95])
    raps = conformal(probs, labels, miss=0.6, score="raps", penalty=0.1, free=1)
    assert raps.scores(probs).flatten().tolist() == pytest.approx([0.5, 0.8, 0.8, 1.3])


def test_the_threshold_is_the_quantile_of_n_plus_1():
    right = torch.tensor([0.9, 0.8, 0.7, 0.6])
    probs = torch.stack([right, 1 - right], 1)
    labels = torch.zeros(4, dtype=torch.long)
    # ⌈5 · .8⌉ = 4: the largest of 1 - p; ⌈5 · .6⌉ = 3.
    assert conformal(probs, labels, miss=0.2).threshold == pytest.approx(0.4)
    assert conformal(probs, labels, miss=0.4).threshold == pytest.approx(0.3)
    with pytest.raises(bella.BellaError, match="at least 9"):
        conformal(probs, labels, miss=0.1)


@pytest.mark.parametrize(
    ("score", "randomised"),
    [("lac", False), ("aps", False), ("aps", True), ("raps", False), ("raps", True)],
)
def test_sets_cover_as_promised_on_exchangeable_data(score, randomised):
    """Over 200 calibrations of 99 examples, ⌈100 · .9⌉ = 90: the mean coverage is .9 within four
    standard errors of a beta-binomial's mean."""
    covered = []
    generator = torch.Generator().manual_seed(1)
    for seed in range(200):
        probs, labels = answers(299, seed)
        uniform = torch.rand(299, generator=generator) if randomised else None
        first, rest = (None, None) if uniform is None else (uniform[:99], uniform[99:])
        made = conformal(probs[:99], labels[:99], miss=0.1, score=score, uniform=first)
        covered.append(set_figures(made.sets(probs[99:], rest), labels[99:])["coverage"])
    mean = sum(covered) / 200
    error = stats.betabinom(200, 90, 10).std() / 200 / math.sqrt(200)
    assert abs(mean - 0.9) < 4 * error


def test_each_coverage_lies_where_both_samples_let_it():
    outside = 0
    for seed in range(200):
        probs, labels = answers(299, seed)
        made = conformal(probs[:99], labels[:99], miss=0.1)
        low, high = coverage_range(made, 200, level=0.9)
        coverage = set_figures(made.sets(probs[99:]), labels[99:])["coverage"]
        outside += not low <= coverage <= high
    assert 0.02 < outside / 200 < 0.16


def test_after_a_shift_the_promise_is_seen_to_be_broken():
    made = conformal(*answers(500, 0), miss=0.1, score="aps")
    probs, labels = answers(500, 1, shift=4.0)
    assert set_figures(made.sets(probs), labels)["coverage"] < coverage_range(made, 500)[0]


def test_sets_grow_with_doubt_and_ties_have_no_order():
    probs = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    made = replace(conformal(*answers(200, classes=4), score="aps"), threshold=0.95)
    assert made.sets(probs).sum(-1).tolist() == [1, 4, 1]
    surest = replace(made, randomised=True).sets(probs, torch.ones(3))
    assert surest.sum(-1).tolist() == [1, 4, 0]
    assert replace(made, score="lac", threshold=0.7).sets(probs).sum(-1).tolist() == [1, 0, 1]


def test_figures_of_sets():
    sets = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    found = set_figures(sets, torch.tensor([0, 1, 0, 0]))
    assert found == {"coverage": 0.5, "size": 1.0, "single": 0.5, "empty": 0.25}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"score": "lca"}, "choose 'lac'"),
        ({"miss": 0.0}, "in \\(0, 1\\)"),
        ({"penalty": -1.0}, "neither may be below 0"),
        ({"uniform": torch.rand(50)}, "takes no uniform draws"),
        ({"uniform": torch.rand(49), "score": "aps"}, "one each"),
    ],
)
def test_what_cannot_be_is_refused(more, words):
    with pytest.raises(bella.BellaError, match=words):
        conformal(*answers(50), **more)


def test_draws_for_the_one_and_not_for_the_other_are_refused():
    probs, labels = answers(50)
    uniform = torch.rand(50)
    with pytest.raises(bella.BellaError, match="both, or to none"):
        conformal(probs, labels, score="aps", uniform=uniform).sets(probs)
    with pytest.raises(bella.BellaError, match="both, or to none"):
        conformal(probs, labels, score="aps").sets(probs, uniform)
    with pytest.raises(bella.BellaError, match="softmax"):
        conformal(probs, labels).sets(3 * probs + 2)


class Known(ClassifierMixin, BaseEstimator):
    """A classifier for MAPIE: its inputs are what it says."""

    def __init__(self, classes=5):
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, x, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


def test_sets_are_mapie_s():
    from mapie.classification import SplitConformalClassifier

    probs, labels = answers(400)
    more, _ = answers(300, 1)
    for miss in (0.05, 0.15, 0.4):
        theirs = SplitConformalClassifier(
            Known(), confidence_level=1 - miss, conformity_score="lac", prefit=True
        )
        theirs.conformalize(probs.numpy(), labels.numpy())
        _, known = theirs.predict_set(more.numpy())
        found = conformal(probs, labels, miss=miss).sets(more)
        assert torch.equal(found, torch.from_numpy(known[:, :, 0]))


def test_adaptive_scores_are_mapie_s():
    """MAPIE takes u p_y away where ours adds it, so that its u is our 1 - u."""
    from mapie.conformity_scores import APSConformityScore

    probs, labels = answers(400)
    theirs = APSConformityScore()
    theirs.set_external_attributes(classes=np.arange(5), random_state=3)
    known = theirs.get_conformity_scores(labels.numpy(), probs.numpy(), y_enc=labels.numpy())
    uniform = 1 - torch.from_numpy(np.random.RandomState(3).uniform(size=400))
    made = conformal(probs, labels, miss=0.2, score="aps", uniform=uniform)
    found = made.scores(probs, uniform).gather(1, labels[:, None])
    assert torch.allclose(found, torch.from_numpy(known), atol=1e-12)
