"""Charts as data: their numbers are those of `bella.metrics`."""

import math

import numpy as np
import pytest
import torch
from report_cases import said, small_material

from bella import metrics
from bella.prediction.predictive import Predictive
from bella.report.charts import (
    FIRST,
    cost_chart,
    dispute_chart,
    reliability_chart,
    risk_chart,
    shift_chart,
    training_chart,
)
from bella.report.drawn import drawn


def test_a_line_of_reliability_is_its_bins():
    predictive, labels = said(80, 0)
    chart = reliability_chart({"one": (predictive, labels)})
    guide, line = chart.lines
    assert (guide.x, guide.y) == ([0, 1], [0, 1])
    confidence, right, counts = metrics.reliability(predictive.probs, labels, bins=10)
    assert (line.x, line.y) == (confidence, right)
    assert [row[3] for row in chart.numbers.rows] == [str(n) for n in counts]
    assert f"{metrics.ece(predictive.probs, labels):.3f}" in chart.alt


def test_a_risk_is_the_error_rate_of_the_surest():
    predictive, labels = said(50, 1)
    (line,) = risk_chart({"one": (predictive, labels)}).lines
    order = predictive.entropy.argsort()
    wrong = (predictive.predictions != labels)[order]
    assert line.x[0] == pytest.approx(FIRST / 50)
    for x, y in zip(line.x, line.y, strict=True):
        assert y == pytest.approx(float(wrong[: round(50 * x)].double().mean()))
    assert line.x[-1] == 1


def test_long_curves_are_thinned_and_keep_their_ends():
    predictive, labels = said(5000, 1)
    (line,) = risk_chart({"one": (predictive, labels)}).lines
    assert len(line.x) <= 200
    assert line.x[-1] == 1
    assert line.y[-1] == pytest.approx(float((predictive.predictions != labels).double().mean()))


def test_systems_beyond_the_fourth_wait_to_be_asked_for():
    several = {f"system {i}": said(40, i) for i in range(6)}
    for chart in (reliability_chart(several), risk_chart(several)):
        asked = [line.asked for line in chart.lines if line.place is not None]
        assert asked == [False] * 4 + [True] * 2
        hidden = [trace["visible"] == "legendonly" for trace in drawn(chart)["data"]]
        assert sum(hidden) == 2


def test_a_density_has_an_area_of_one():
    generator = torch.Generator().manual_seed(0)
    group = Predictive(torch.randn(4, 200, 3, generator=generator))
    chart = dispute_chart({"right": group, "few": group.positions(torch.arange(200) < 3)}, "one")
    (line,) = chart.lines
    area = np.trapezoid(line.y, np.log10(line.x))
    assert area == pytest.approx(1, abs=0.02)
    assert "few (3)" in chart.says
    assert chart.numbers.rows[0][3] == f"{float(group.mutual_information.median()):.2g}"


def test_one_particle_shows_its_entropy():
    generator = torch.Generator().manual_seed(0)
    chart = dispute_chart({"right": Predictive(torch.randn(1, 50, 3, generator=generator))}, "x")
    assert chart.x.title == "entropy (nats)"
    assert "cannot contradict itself" in chart.says


def test_a_shift_is_drawn_by_its_strength():
    chart = shift_chart("shift", "Fog?", "severity", {"fog": {0.0: 0.9, 1.0: 0.5}}, "Read it.")
    assert chart.lines[0].y == [0.9, 0.5]
    assert "fog from 90.0% to 50.0%" in chart.alt
    assert chart.numbers.rows == [["fog", "90.0%", "50.0%"]]


def test_costs_are_of_three_methods_or_more():
    two = small_material(titles=("Bella", "LoRA")).results
    assert cost_chart(two) is None
    results = small_material(titles=("Bella", "LoRA", "ensemble")).results
    chart = cost_chart(results, ["ensemble", "another"])
    assert [line.name for line in chart.lines] == ["ensemble", "Bella", "LoRA"]
    assert [line.x for line in chart.lines] == [[3.0]] * 3


def test_a_training_without_two_epochs_is_not_drawn():
    assert training_chart([{"epoch": 1, "loss": 1.0}]) is None
    history = [{"epoch": e, "loss": 1 / e, "validation_nll": math.nan} for e in (1, 2)]
    (line,) = training_chart(history).lines
    assert line.y == (1.0, 0.5)


def test_plotly_gets_plain_numbers():
    figure = drawn(risk_chart({"one": said(40, 0)}))
    trace = figure["data"][0]
    assert isinstance(trace["x"], list)
    assert figure["layout"]["xaxis"]["tickformat"] == ".0%"
