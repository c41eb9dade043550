"""Detection against scikit-learn, and a bootstrap against the delta method."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

import bella
from bella.metrics import auroc, auroc_interval, fpr_at_tpr


def scored(count=400, seed=0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(count, generator=generator) < 0.3
    score = torch.randn(count, generator=generator) + positive
    return score.mul(2).round() if ties else score, positive


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tpr", [0.5, 0.95, 1.0])
def test_false_alarms_are_those_of_the_roc_curve(ties, tpr):
    score, positive = scored(ties=ties)
    false, true, _ = roc_curve(positive, score, drop_intermediate=False)
    assert fpr_at_tpr(score, positive, tpr) == pytest.approx(false[true >= tpr - 1e-12].min())


def test_false_alarms_by_hand():
    score = torch.tensor([4.0, 3.0, 2.0, 1.0])
    positive = torch.tensor([True, False, True, False])
    assert fpr_at_tpr(score, positive, 0.5) == 0
    assert fpr_at_tpr(score, positive) == 0.5
    assert math.isnan(fpr_at_tpr(score, positive & False))


@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_is_the_percentiles_of_auroc_on_resamples(ties):
    score, positive = scored(60, 1, ties)
    generator = torch.Generator().manual_seed(5)
    kinds = [positive.nonzero().flatten(), (~positive).nonzero().flatten()]
    drawn = [torch.randint(len(kind), (50, len(kind)), generator=generator) for kind in kinds]
    known = torch.tensor(
        [
            roc_auc_score(
                torch.cat([torch.ones(len(a)), torch.zeros(len(b))]),
                score[torch.cat([kinds[0][a], kinds[1][b]])],
            )
            for a, b in zip(*drawn, strict=True)
        ],
        dtype=torch.double,
    ).quantile(torch.tensor([0.05, 0.95], dtype=torch.double))
    found = auroc_interval(score, positive, level=0.9, resamples=50, seed=5)
    assert found == pytest.approx(known.tolist(), abs=1e-9)


def test_the_interval_has_hanley_and_mcneil_s_width():
    score, positive = scored(2000, 2)
    low, high = auroc_interval(score, positive)
    area = auroc(score, positive)
    up, down = int(positive.sum()), int((~positive).sum())
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (up - 1) * (one - area**2) + (down - 1) * (two - area**2)
    assert low < area < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance / up / down), rel=0.1)
    assert (low, high) == auroc_interval(score, positive)
    assert (low, high) != auroc_interval(score, positive, seed=1)


def test_large_data_are_resampled_in_parts(monkeypatch):
    score, positive = scored(100)
    whole = auroc_interval(score, positive, resamples=300)
    monkeypatch.setattr("bella.metrics.detection.ENTRIES", 1000)
    assert auroc_interval(score, positive, resamples=300) == pytest.approx(whole, abs=0.02)


def test_what_has_no_interval_is_nan_or_refused():
    score, positive = scored(20)
    assert all(map(math.isnan, auroc_interval(score, positive | True)))
    with pytest.raises(bella.BellaError, match="resamples=0"):
        auroc_interval(score, positive, resamples=0)
    with pytest.raises(bella.BellaError, match="level=1"):
        auroc_interval(score, positive, level=1.0)
    with pytest.raises(bella.BellaError, match="tpr=0"):
        fpr_at_tpr(score, positive, 0.0)
