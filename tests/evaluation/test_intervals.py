"""Intervals by the names of the figures that they are of."""

from __future__ import annotations

import math

import torch

from bella.evaluation.evaluate import evaluate_predictive
from bella.evaluation.intervals import auroc_intervals
from bella.prediction.predictive import Predictive


def told(count, seed, particles=3, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    predictive = Predictive(scale * torch.randn(particles, count, 3, generator=generator))
    return predictive, torch.randint(3, (count,), generator=generator)


def test_every_auroc_lies_in_its_interval():
    clean, far = told(200, 0), told(150, 1, scale=1.0)
    figures = evaluate_predictive(*clean, ood={"far": far})
    found = auroc_intervals(*clean, ood={"far": far}, resamples=200)
    assert set(found) == {name for name in figures if name.startswith("auroc_")}
    for name, (low, high) in found.items():
        assert low < figures[name] < high
        assert high - low < 0.25
    assert found == auroc_intervals(*clean, ood={"far": far}, resamples=200)


def test_one_network_has_no_interval_of_mutual_information():
    clean = told(100, 0, particles=1)
    found = auroc_intervals(*clean, ood={"far": clean}, resamples=50)
    assert all(map(math.isnan, found["auroc_errors_mi"] + found["auroc_far_mi"]))
    assert found["auroc_errors_entropy"][0] > 0
