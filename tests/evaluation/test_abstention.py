"""Promises of abstention: kept on data drawn alike, seen to be broken on others, or not made."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import bella
from bella.evaluation.abstention import PLACES, fewest, promise, risk_bound


def answers(count, seed=0, shift=0.0):
    """Two classes whose confidence is right on average: an answer of probability p is wrong with
    1 - p; with a shift more often."""
    generator = torch.Generator().manual_seed(seed)
    logit = 2.5 * torch.randn(count, generator=generator, dtype=torch.double)
    probs = torch.stack([logit.sigmoid(), (-logit).sigmoid()], 1)
    truth = (probs + shift) / (1 + 2 * shift)
    labels = (torch.rand(count, generator=generator) > truth[:, 0]).long()
    return probs, labels, 1 - probs.amax(1)


def test_what_is_promised_holds_as_often_as_promised():
    """The true risk below a threshold is known: the mean of 1 - p over those that are answered."""
    *_, doubt = answers(200_000, 999)
    broken = made = 0
    for seed in range(300):
        kept = promise(*answers(500, seed), risk=0.1, delta=0.2)
        if kept.kept:
            made += 1
            broken += float(doubt[kept.answers(doubt)].mean()) > 0.1
    assert made > 250
    assert broken / 300 < 0.2


def test_the_promise_is_the_largest_tested_coverage_that_clopper_and_pearson_allow():
    probs, labels, doubt = answers(800, 3)
    found = promise(probs, labels, doubt, risk=0.05, delta=0.1)
    wrong = probs.argmax(1) != labels
    order = doubt.argsort()
    least = fewest(0.05, 0.1)
    allowed = [
        m
        for m in (least + (800 - least) * k // (PLACES - 1) for k in range(PLACES))
        if stats.binomtest(int(wrong[order][:m].sum()), m, 0.05, "less").pvalue <= 0.1 / PLACES
    ]
    assert found.coverage == max(allowed) / 800
    assert int(found.answers(doubt).sum()) == max(allowed)


def test_everything_is_answered_where_nothing_is_wrong_and_nothing_where_all_is():
    probs = torch.tensor([[0.9, 0.1]]).repeat(200, 1)
    doubt = torch.linspace(0, 1, 200)
    right, wrong = torch.zeros(200, dtype=torch.long), torch.ones(200, dtype=torch.long)
    assert promise(probs, right, doubt, risk=0.05).threshold == math.inf
    none = promise(probs, wrong, doubt, risk=0.05)
    assert not none.kept
    assert not none.answers(doubt).any()
    figures = none.check(probs, wrong, doubt)
    assert figures["referred"] == 1
    assert math.isnan(figures["risk"])
    # All alike in doubt: all are answered or none.
    assert promise(probs, right, torch.zeros(200), risk=0.05).coverage == 1
    half = torch.arange(200) % 2
    assert promise(probs, half, torch.zeros(200), risk=0.05).coverage == 0


def test_a_shift_breaks_the_promise_and_is_seen_to():
    kept = promise(*answers(1000, 0), risk=0.05, delta=0.1)
    alike = kept.check(*answers(1000, 1))
    assert alike["p"] > 0.01
    assert alike["risk"] < 0.05
    assert alike["answered"] == pytest.approx(1000 * (1 - alike["referred"]))
    shifted = kept.check(*answers(1000, 1, shift=0.3))
    assert shifted["risk"] > 0.05
    assert shifted["p"] < 1e-6


def test_how_many_answers_a_promise_takes():
    least = fewest(0.02, 0.1)
    assert 0.98**least <= 0.1 / PLACES < 0.98 ** (least - 1)
    with pytest.raises(bella.BellaError, match=f"it takes {least}"):
        promise(*answers(least - 1), risk=0.02, delta=0.1)
    right = torch.zeros(least, dtype=torch.long)
    probs = torch.tensor([[0.9, 0.1]]).repeat(least, 1)
    assert promise(probs, right, torch.zeros(least), risk=0.02, delta=0.1).coverage == 1


def test_the_bound_of_clopper_and_pearson():
    known = stats.binomtest(3, 120, alternative="less").proportion_ci(0.9, method="exact").high
    assert risk_bound(3, 120, 0.1) == pytest.approx(known, abs=1e-12)
    assert risk_bound(0, 50, 0.05) == pytest.approx(1 - 0.05 ** (1 / 50), abs=1e-12)
    assert risk_bound(5, 5) == 1
    for bad in ((3, 2, 0.1), (0, 0, 0.1), (1, 2, 1.0)):
        with pytest.raises(bella.BellaError, match="give counts"):
            risk_bound(*bad)


@pytest.mark.parametrize(
    ("more", "words"),
    [({"risk": 0.0}, "risk=0.0"), ({"delta": 1.0}, "delta=1.0")],
)
def test_shares_out_of_range_are_refused(more, words):
    with pytest.raises(bella.BellaError, match=words):
        promise(*answers(300), **more)
    probs, labels, doubt = answers(300)
    with pytest.raises(bella.BellaError, match="must be finite"):
        promise(probs, labels, doubt * math.nan)
    with pytest.raises(bella.BellaError, match="one for each"):
        promise(probs, labels, doubt[1:])
