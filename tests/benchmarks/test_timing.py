"""Rounds end when the ratio is known, whatever else the machine does; the clock is the test's."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy.stats import binomtest, quantile_test

from timing import Until, interval, paired, ratios, relative_width, spread


class Clock:
    """Time that passes only in calls."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def taking(self, seconds):
        """A call that takes so long, or as long as a function of the time says."""

        def call():
            self.now += seconds(self.now) if callable(seconds) else seconds

        return call


def of(clock, until, ours, theirs, **options):
    ways = {"ours": clock.taking(ours), "theirs": clock.taking(theirs)}
    return paired("test", ways, until, clock=clock, **options)


def test_rounds_end_as_soon_as_an_interval_is_there_and_narrow():
    found = of(Clock(), Until(), 2.0, 5.0)
    assert found == {"ours": [2.0] * 6, "theirs": [5.0] * 6}


def test_noise_takes_more_rounds_and_the_ratio_is_then_as_sure():
    noise = random.Random(0)
    clock = Clock()
    found = of(clock, Until(most=500), 2.0, lambda now: 5.0 * noise.uniform(0.8, 1.25))
    known = ratios(found["theirs"], found["ours"])
    assert 6 < len(known) < 500
    assert relative_width(known) <= Until().width
    low, high = interval(known)
    assert low <= statistics.median(known) <= high


def test_a_machine_that_slows_down_half_way_leaves_the_ratio():
    clock = Clock()

    def slower(seconds):
        return lambda now: seconds * (1 if now < 40 else 7)

    found = of(clock, Until(width=0.0, most=20), slower(2.0), slower(5.0), warmup=0)
    known = ratios(found["theirs"], found["ours"])
    assert max(found["ours"]) == 7 * min(found["ours"])
    assert statistics.median(known) == 2.5
    assert relative_width(known) == 0  # the one round in which it happened is outside


def test_rounds_end_at_their_limits():
    noise = random.Random(0)

    def wild(now):
        return math.exp(noise.gauss(0, 2))

    assert len(of(Clock(), Until(most=9), 1.0, wild)["ours"]) == 9
    clock = Clock()
    found = of(clock, Until(seconds=35, width=0.0), 2.0, lambda now: 3.0 + now % 0.1)
    assert len(found["ours"]) == 6  # a seventh would end after 35 seconds
    assert len(of(Clock(), Until(seconds=0.1), 2.0, 3.0)["ours"]) == 1


def test_what_runs_beside_is_timed_and_not_compared():
    noise = random.Random(0)
    clock = Clock()
    beside = {"product": clock.taking(lambda now: noise.uniform(1, 100))}
    found = of(clock, Until(), 2.0, 5.0, beside=beside)
    assert len(found["product"]) == len(found["ours"]) == 6


def test_everybody_is_first_in_some_round():
    order = []
    clock = Clock()
    second = clock.taking(1.0)
    ways = {name: (lambda name=name: (order.append(name), second())) for name in "abc"}
    paired("test", ways, Until(most=3), warmup=0, clock=clock)
    assert [order[0], order[3], order[6]] == ["a", "b", "c"]


@pytest.mark.parametrize("count", [6, 7, 20, 61])
def test_the_interval_is_that_of_the_sign_test(count):
    values = [math.sin(i) for i in range(count)]
    low, high = interval(values)
    confidence = quantile_test(values, q=0.0, p=0.5).confidence_interval(0.95)
    assert (low, high) == (confidence.low, confidence.high)
    below = sorted(values).index(low)
    assert binomtest(below, count).pvalue <= 0.05 < binomtest(below + 1, count).pvalue


def test_fewer_than_six_rounds_have_no_interval_and_say_their_number():
    assert interval([1.0] * 5) is None
    assert relative_width([1.0] * 5) == math.inf
    assert spread([1.0, 2.0, 4.0], 1) == "2.0 (1.0 to 4.0, range of 3)"
    assert spread([1.0], 1) == "1.0"
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0, 6.0], 1) == "3.5 (1.0 to 6.0)"
