"""Figures of answers beside people's, against values counted by hand and the rules as they are
written down."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bella import BellaError, metrics
from bella.metrics import vqa


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Two  cats.", "2 cats"),
        ("The Zoo", "zoo"),
        ("none", "0"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a number with a comma takes all marks away, as it is told
        ("red-brown", "red brown"),
        ("red - brown", "red brown"),
        ("yes, it is", "yes it is"),
        ("yes,it is", "yes it is"),
        ("2.5", "2.5"),
        ("2.", "2"),
        ("a.m.", "am"),
        ("dont walk", "don't walk"),
        ("don't walk", "don't walk"),
        ("oclock", "o'clock"),
        ("its well", "its well"),
        ("$5", "$5"),
        ("stop\nsign?!", "stop sign"),
        ("(left)", "left"),
        ("", ""),
    ],
)
def test_answers_are_compared_as_the_benchmark_does_it(text, normalised):
    assert metrics.vqa_normalised(text) == normalised


def test_contractions_without_their_apostrophes():
    found = vqa.CONTRACTIONS
    assert all(whole.replace("'", "") == word for word, whole in found.items())
    assert {"wont": "won't", "cant": "can't", "youre": "you're"}.items() <= found.items()
    assert not {"well", "were", "its", "id", "ill", "hell", "shed"} & set(found)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes.", "yes/no"), ("no", "yes/no"), ("two", "number"), ("2.5", "number"), ("red", "other")],
)
def test_the_kind_of_an_answer(answer, kind):
    assert vqa.answer_type(answer) == kind


def test_votes_are_counted_after_normalising():
    assert vqa.votes(["Red", "red.", "the red", "pink"]) == [("red", 3), ("pink", 1)]


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_the_accuracy_of_vqa_for_ten_people(agree, accuracy):
    people = ["Yes."] * agree + ["no"] * (10 - agree)
    assert metrics.vqa_accuracy("yes", people) == pytest.approx(accuracy)
    assert metrics.vqa_exact_match("yes", people) is (agree >= 4)


@pytest.mark.parametrize("people", [["a", "b", "b", "c", "b"], ["b"] * 7, ["b", "c"], ["c"] * 4])
def test_the_accuracy_of_vqa_is_the_mean_over_all_subsets_without_one(people):
    subsets = list(itertools.combinations(people, len(people) - 1))
    mean = sum(min(subset.count("b") / 3, 1) for subset in subsets) / len(subsets)
    assert metrics.vqa_accuracy("b", people) == pytest.approx(mean)


def test_human_confidence_is_the_share_of_the_most_frequent_answer():
    assert metrics.human_confidence(["yes", "Yes.", "no", "the yes"]) == 0.75
    for people in ([], "yes"):
        with pytest.raises(BellaError):
            metrics.human_confidence(people)
    with pytest.raises(BellaError, match="at least two"):
        metrics.vqa_accuracy("yes", ["yes"])


def test_confidence_where_entropy_is_low_and_high():
    entropy = torch.tensor([0.05, 0.25, 0.5], dtype=torch.float64)
    confidence = torch.tensor([1.0, 0.8, 0.2], dtype=torch.float64)
    low, high = metrics.confidence_by_entropy(entropy, confidence, (0.1, 0.25, 0.6))
    assert low.tolist() == pytest.approx([1.0, 0.9, 2 / 3])
    assert high[:2].tolist() == pytest.approx([0.5, 0.2])
    assert high[2].isnan()
    assert len(metrics.confidence_by_entropy(entropy, confidence)[0]) == 8
    with pytest.raises(BellaError, match="not one of each"):
        metrics.confidence_by_entropy(entropy, confidence[:2])


def test_one_reference_is_right_or_wrong_and_tells_no_confidence():
    assert vqa.judged("The red", ("red",)) == {
        "accuracy": 1.0,
        "exact_match": True,
        "human_confidence": None,
    }
    several = vqa.judged("red", ["red"] * 3 + ["pink"] * 7)
    assert several == {
        "accuracy": pytest.approx(0.9),
        "exact_match": False,
        "human_confidence": 0.7,
    }
    for people in ((), "red"):
        with pytest.raises(BellaError, match="several people"):
            vqa.judged("red", people)


def row(kind: str, accuracy: float, entropy: float, mi: float) -> dict:
    return {
        "type": kind,
        "accuracy": accuracy,
        "exact_match": accuracy == 1,
        "entropy": entropy,
        "mutual_information": mi,
    }


def test_figures_by_kind_of_answer():
    rows = [
        row("yes/no", 1.0, 0.1, 0.01),
        row("yes/no", 1.0, 0.3, 0.03),
        row("yes/no", 0.3, 0.6, 0.2),
        row("other", 0.9, 1.0, 0.4),
    ]
    found = vqa.by_type(rows)
    assert list(found) == ["all", "yes/no", "other"]
    assert found["all"]["questions"] == 4
    assert found["all"]["accuracy"] == pytest.approx(0.8)
    assert found["all"]["entropy_wrong"] == pytest.approx(0.8)
    assert found["yes/no"] == {
        "questions": 3,
        "accuracy": pytest.approx(2.3 / 3),
        "exact_match": pytest.approx(2 / 3),
        "entropy_correct": pytest.approx(0.2),
        "entropy_wrong": pytest.approx(0.6),
        "mi_correct": pytest.approx(0.02),
        "mi_wrong": pytest.approx(0.2),
    }
    assert math.isnan(found["other"]["entropy_correct"])
    with pytest.raises(BellaError, match="no answers"):
        vqa.by_type([])
    with pytest.raises(BellaError, match="type 'what'"):
        vqa.by_type([row("what", 1.0, 0.0, 0.0)])
