"""Options scored by a language model, against text by text."""

from __future__ import annotations

import pytest
import torch
from language_cases import small_language_model, small_tokenizer
from torch.utils.data import default_collate

import bella
from bella import BellaError
from bella.data.choices import TokenisedQuestions
from bella.data.written import Questions
from bella.models.chooser import Chooser


def questions() -> TokenisedQuestions:
    options = [("Paris", "a city in Spain", "Rome .", "no"), ("yes", "no", "in Oslo", "blue")]
    asked = ["what is the capital of France ?", "who ?"]
    plain = Questions(asked, options, [0, 2], "ABCD")
    return TokenisedQuestions(plain, small_tokenizer(), lambda text: f"question {text} answer")


@torch.no_grad()
def slow(network, score):
    """Each question with each option alone, without padding, in float64."""
    tokenizer, found = small_tokenizer(), []
    network = network.double()
    asked = questions()
    for text, options in zip(asked.questions, asked.options, strict=True):
        for option in options:
            before = tokenizer(f"question {text} answer")["input_ids"]
            after = tokenizer(option)["input_ids"]
            log_probs = network(torch.tensor([before + after])).logits[0].log_softmax(-1)
            told = [log_probs[len(before) - 1 + t, token] for t, token in enumerate(after)]
            found.append(sum(told) / (1 if score == "sum" else len(told)))
    return torch.stack(found).view(2, 4)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_logits_are_the_log_probabilities_of_the_options(score):
    inputs, labels = default_collate(list(questions()))
    assert labels.tolist() == [0, 2]
    found = Chooser(small_language_model(), score)(**inputs)
    torch.testing.assert_close(
        found.double(), slow(small_language_model(), score), atol=2e-5, rtol=0
    )


def test_particles_choose_in_one_pass_behind_a_shared_prefix():
    posterior = bella.low_rank(
        Chooser(small_language_model()),
        3,
        rank=2,
        target_modules=(r"language\.model\.layers\.2\.(self_attn\.q_proj|mlp\.up_proj)",),
        b_std=0.5,
    )
    inputs, labels = default_collate(list(questions()))
    logits = posterior(**inputs)
    for i in range(3):
        torch.testing.assert_close(logits[i], posterior.particle(i)(**inputs))
        assert not torch.allclose(logits[i], logits[i - 1], atol=1e-3)
    (plan,) = posterior.plan()
    assert (plan.how, plan.entrance) == ("shared", "language.model.layers.2")
    bella.nll(logits, labels).backward()
    assert all(p.grad.flatten(1).any(1).all() for p in posterior.stacked_parameters().values())


def test_what_is_selected_keeps_its_shape_and_what_is_empty_is_refused():
    whole = questions()
    assert whole.select([1])[0][0]["input_ids"].shape == whole[0][0]["input_ids"].shape
    assert whole.length(0) == 1 + 7 + 1 + 4
    with pytest.raises(BellaError, match="empty option"):
        TokenisedQuestions(Questions(["who ?"], [("", "b")], [0], "AB"), small_tokenizer(), str)
    with pytest.raises(BellaError, match="choose 'sum' or 'mean'"):
        Chooser(small_language_model(), "letter")
