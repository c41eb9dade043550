"""Promises on one set of examples, tried on others, in figures and in words."""

from __future__ import annotations

import pytest
import torch

import bella
from bella.evaluation.decisions import decisions
from bella.prediction.predictive import Predictive
from bella.report.decisions import say_decisions


def part(count, seed, noise=0.0):
    """Two particles that are right on average, or not: with noise labels have less to do with
    them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, count, 3, generator=generator)
    predictive = Predictive(logits)
    shares = (1 - noise) * predictive.probs + noise / 3
    return predictive, torch.multinomial(shares, 1, generator=generator).flatten()


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_promises_hold_on_data_alike_and_are_seen_broken_on_others(score):
    found = decisions(
        part(600, 0),
        {"same": part(600, 1), "far": part(600, 2, noise=0.8)},
        score=score,
        miss=0.1,
        risk=0.15,
    )
    for promised in found.values():
        assert not promised["parts"]["same"]["broken"]
        assert promised["parts"]["far"]["broken"]
    assert 0 < found["referrals"]["referred"] < 1
    said = say_decisions(found)
    assert len(said) == 6
    assert said[0].startswith(f"Prediction sets ({score.upper()}, from 600")
    assert "90% of the time" in said[0]
    assert "BROKEN" in said[2]
    assert f"Refer {found['referrals']['referred']:.0%}" in said[3]
    assert "the rest is at least 85% right" in said[3]
    assert "BROKEN" in said[5]
    assert "BROKEN" not in said[1] + said[4]


def test_what_is_asked_for_is_not_rounded():
    found = decisions(part(600, 0), {}, miss=0.005, risk=0.125, delta=0.001)
    said = " ".join(say_decisions(found))
    for words in ("99.5% of the time", "87.5% right"):
        assert words in said


def test_what_so_few_examples_cannot_promise_is_said():
    found = decisions(part(8, 0), {"same": part(50, 1)})
    assert "8 calibration examples" in found["sets"]["refused"]
    said = say_decisions(found)
    assert len(said) == 2
    assert "at least 9" in said[0]
    assert "it takes" in said[1]


def test_a_network_that_is_never_right_enough_refers_everything():
    found = decisions(part(400, 0, noise=1.0), {"same": part(50, 1)}, risk=0.05)
    assert found["referrals"]["referred"] == 1
    assert "no threshold of entropy" in say_decisions(found)[-1]


def test_a_network_that_is_always_right_refers_nothing():
    predictive, _ = part(300, 0)
    right = predictive, predictive.predictions
    found = decisions(right, {"same": right}, risk=0.05)
    assert found["referrals"]["referred"] == 0
    assert "Refer nothing" in say_decisions(found)[2]


def test_arguments_out_of_range_are_refused():
    for wrong in ({"miss": 2.0}, {"risk": -1.0}, {"score": "x"}):
        with pytest.raises(bella.BellaError):
            decisions(part(400, 0), {}, **wrong)
