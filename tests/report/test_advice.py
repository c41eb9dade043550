"""What to do with it: thresholds, and what came of them."""

import dataclasses

import pytest
import torch
from report_cases import small_material

from bella.evaluation.abstention import fewest, promise, risk_bound
from bella.prediction.predictive import Predictive
from bella.report.advice import BUDGETS, DELTA, RISKS, advice
from bella.report.html import advised, caveats, thresholds


def test_budgets_are_quantiles_of_validation_and_are_counted_on_test():
    material = small_material()
    found = advice(material)
    validation, _ = material.of_told("validation")
    predictive, labels = material.of_told("test")
    assert [budget.share for budget in found.budgets] == list(BUDGETS)
    for budget in found.budgets:
        assert float((validation.entropy >= budget.threshold).double().mean()) == pytest.approx(
            budget.share, abs=1.5 / 60
        )
        test, far = budget.held
        answered = predictive.entropy < budget.threshold
        wrong = (predictive.predictions != labels)[answered]
        assert (test.part, test.answered, test.wrong) == (
            "test",
            int(answered.sum()),
            int(wrong.sum()),
        )
        assert test.bound == risk_bound(test.wrong, test.answered, DELTA)
        assert far.part == "far"


def test_promises_are_those_of_validation():
    material = small_material(validation=600, knows=6.0)
    predictive, labels = material.of_told("validation")
    rows = dict((made.risk, made) for made, _ in advice(material).rows)
    assert rows
    for risk, made in rows.items():
        assert made == promise(predictive.probs, labels, predictive.entropy, risk=risk, delta=DELTA)


def test_what_cannot_be_promised_is_said_with_what_it_takes():
    material = small_material(validation=60)
    found = advice(material)
    assert found.lacking == {risk: fewest(risk, DELTA) for risk in RISKS if risk < 0.07}
    assert thresholds(found) is None or len(found.rows) == 1
    assert f"takes {fewest(0.05, DELTA)}, " in caveats(material, found)[0]


def test_a_promise_that_a_shift_breaks_is_called_broken():
    material = small_material(validation=600, knows=6.0)
    assert advice(material).breaks == ["far"]


def test_parts_without_labels_are_not_counted():
    material = small_material()
    parts = material.predictions["Bella"]
    unknown = parts["far"][0], torch.full((40,), -1)
    other = dataclasses.replace(material, predictions={"Bella": parts | {"far": unknown}})
    assert {held.part for b in advice(other).budgets for held in b.held} == {"test"}
    doubted = dict(material.results, words=material.results["words"] | {"unscored": ["far"]})
    other = dataclasses.replace(material, results=doubted)
    assert {held.part for b in advice(other).budgets for held in b.held} == {"test"}


def test_an_answer_that_is_never_wrong_needs_nobody():
    labels = torch.arange(600) % 3
    sure = Predictive(torch.nn.functional.one_hot(labels, 3).double()[None] * 9), labels
    material = small_material()
    predictions = {"Bella": material.predictions["Bella"] | {"validation": sure, "test": sure}}
    told = dataclasses.replace(material, predictions=predictions)
    found = advice(told)
    assert found.best.coverage == 1
    assert "Of all answers at most 1% are wrong" in advised(told, found)
