"""Figures of answers against values counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bella import BellaError, metrics


def test_token_nll_is_the_mean_over_the_tokens_that_count():
    log_probs = torch.tensor([[-1.0, -2.0, -100.0], [-3.0, -100.0, -100.0]], dtype=torch.float64)
    assert metrics.token_nll(log_probs, torch.tensor([2, 1])) == pytest.approx(2.0)
    uniform = torch.full((4, 5), -math.log(7), dtype=torch.float64)
    nll = metrics.token_nll(uniform, torch.tensor([5, 1, 2, 3]))
    assert math.exp(nll) == pytest.approx(7)  # the perplexity of an even choice of seven


def test_answer_entropy_is_a_mean_over_each_answer_s_own_tokens():
    entropy = torch.tensor([[1.0, 3.0, 50.0], [2.0, 50.0, 50.0], [9.0, 9.0, 9.0]])
    found = metrics.answer_entropy(entropy, torch.tensor([2, 1, 0]))
    assert found[:2].tolist() == [2.0, 2.0]
    assert found[2].isnan()


@pytest.mark.parametrize(
    ("values", "lengths", "said"),
    [
        (torch.zeros(2, 3), torch.tensor([1]), "not \\(batch, length\\)"),
        (torch.zeros(2, 3), torch.tensor([1, 4]), "from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([0, 0]), "no tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(values, lengths, said):
    with pytest.raises(BellaError, match=said):
        metrics.token_nll(values, lengths)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Two cats.", "the 2 cats"),
        ("It's  a RED-brown dog!", "its red brown dog"),
        ("1,000", "1000"),
        ("2.5", "2.5."),
        ("none", "0"),
        ("Paris", " paris "),
    ],
)
def test_what_makes_no_difference_to_an_answer(one, other):
    assert metrics.normalised(one) == metrics.normalised(other)


@pytest.mark.parametrize(
    ("one", "other"), [("2.5", "25"), ("theatre", "atre"), ("1,2", "12"), ("ten", "one")]
)
def test_what_makes_a_difference(one, other):
    assert metrics.normalised(one) != metrics.normalised(other)


def test_exact_match():
    assert metrics.exact_match(["The cat", "dog"], ["cat.", "hog"]) == 0.5
    for answers, references in ((["a"], []), ([], []), ("cat", ["c", "a", "t"])):
        with pytest.raises(BellaError):
            metrics.exact_match(answers, references)
