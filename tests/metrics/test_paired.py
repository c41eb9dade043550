"""Paired tests against scipy, Holm against a hand-made table, and the level under no difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import bella
from bella.metrics import holm, paired_test
from bella.metrics.paired import needed, overlap_of_draws

A, B = [0.31, 0.28, 0.35, 0.30], [0.33, 0.31, 0.34, 0.35]


def test_without_overlap_it_is_scipy_s_paired_t_test():
    found, known = paired_test(A, B), stats.ttest_rel(A, B)
    interval = known.confidence_interval(0.95)
    assert found.p == pytest.approx(known.pvalue, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert (found.higher, found.lower, found.pairs) == (1, 3, 4)


def test_overlap_widens_by_nadeau_and_bengio_s_factor():
    plain, corrected = paired_test(A, B), paired_test(A, B, overlap=0.3)
    factor = math.sqrt((1 / 4 + 0.3) / (1 / 4))
    assert corrected.high - corrected.low == pytest.approx(factor * (plain.high - plain.low))
    gaps = np.subtract(A, B)
    t = gaps.mean() / math.sqrt(gaps.var(ddof=1) * (1 / 4 + 0.3))
    assert corrected.p == pytest.approx(2 * stats.t.sf(abs(t), 3), abs=1e-12)


def test_overlapping_splits_keep_the_level_only_with_the_correction():
    """Two methods whose answers differ by nothing on average, on a fifth of one pool each time: two
    such tests share a fifth of their examples, and the correction for that is a quarter."""
    random = np.random.default_rng(0)
    found = {0.0: 0, 0.25: 0}
    for _ in range(400):
        pool = random.normal(size=100)
        gaps = [float(pool[random.permutation(100)[:20]].mean()) for _ in range(15)]
        for overlap in found:
            found[overlap] += paired_test(gaps, [0.0] * 15, overlap=overlap).p < 0.05
    assert abs(found[0.25] / 400 - 0.05) < 0.035
    assert found[0.0] / 400 > 0.2


def test_draws_from_one_pool_keep_the_level_with_what_they_share():
    """Means of 40 of 100 examples, drawn 8 times from the same 100: two draws share .4 of them."""
    random = np.random.default_rng(1)
    found = {0.0: 0, overlap_of_draws(0.4): 0}
    for _ in range(400):
        pool = random.normal(size=100)
        gaps = [float(pool[random.permutation(100)[:40]].mean()) for _ in range(8)]
        for overlap in found:
            found[overlap] += paired_test(gaps, [0.0] * 8, overlap=overlap).p < 0.05
    assert abs(found[overlap_of_draws(0.4)] / 400 - 0.05) < 0.035
    assert found[0.0] / 400 > 0.2
    assert overlap_of_draws(0.2) == pytest.approx(0.25)
    for share in (1.0, -0.1, math.nan):
        with pytest.raises(bella.BellaError, match="share from 0"):
            overlap_of_draws(share)


def test_differences_without_a_spread_have_the_sign_test_s_p_value():
    same = paired_test([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    assert same.p == 0.25 == stats.binomtest(3, 3).pvalue
    assert math.isnan(same.low)
    assert paired_test([1.0, 2.0], [1.0, 2.0]).p == 1
    assert paired_test([1.0, 2.0], [1.0, 2.0]).high == 0


def test_seeds_without_a_figure_are_left_out():
    assert paired_test([*A, math.nan, 1.0], [*B, 1.0, math.nan]) == paired_test(A, B)


def test_holm():
    # Worked by hand: .01 * 4; .02 * 3; .03 * 2 is no more than that; .5.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_number_of_standard_errors_that_a_claim_takes():
    bar = needed(5, 20)
    gaps = np.array([-1.0, 1.0, 0.0, 0.0, 0.0])
    gaps += bar * gaps.std(ddof=1) / math.sqrt(5)
    p = paired_test(gaps.tolist(), [0.0] * 5).p
    assert holm([p, *[1.0] * 19])[0] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("a", "b", "overlap", "words"),
    [
        ([1.0], [1.0, 2.0], 0, "not pairs"),
        ([1.0], [2.0], 0, "at least two seeds"),
        ([1.0, math.nan], [1.0, 2.0], 0, "1 pairs"),
        ([1.0, 2.0], [1.0, 2.0], -1.0, "at least 0"),
    ],
)
def test_what_cannot_be_paired_is_refused(a, b, overlap, words):
    with pytest.raises(bella.BellaError, match=words):
        paired_test(a, b, overlap=overlap)
    with pytest.raises(bella.BellaError, match="no probability"):
        holm([0.5, math.nan])
