"""The figures of given answers, against dense formulas and what was written with a cache."""

from __future__ import annotations

import math

import pytest
import torch
from language_cases import byte_tokenizer, small_language_model, small_tokenizer, small_writers

import bella
from bella import BellaError
from bella.generation.answers import Answers, Figures
from bella.generation.texts import left_padded, prompt_tokens, right_padded

QUESTIONS = ["what is the capital of France ?", "where is Oslo ?", "who are you ?"]
ANSWERS = ["Paris", "in Norway .", "yes yes no a city"]


@torch.no_grad()
def dense(posterior, prompt, answer):
    """log p_i of each token of an answer, (particles, length, vocabulary), text by text."""
    text = torch.cat((prompt, answer))
    rows = []
    for i in range(posterior.particles):
        logits = posterior.particle(i).double()(text[None]).logits[0]
        rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_score_is_the_dense_formula(batch_size):
    posterior, tokenizer = small_writers(), small_tokenizer()
    found = posterior.score(QUESTIONS, ANSWERS, tokenizer=tokenizer, batch_size=batch_size)
    assert found.texts == tuple(ANSWERS)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        prompt = torch.tensor(tokenizer(question)["input_ids"])
        tokens = torch.tensor(tokenizer(answer)["input_ids"])
        log_probs = dense(posterior, prompt, tokens)
        length = len(tokens)
        assert found.lengths[row] == length
        own = log_probs.gather(-1, tokens.expand(3, -1)[..., None])[..., 0]
        mean = log_probs.exp().mean(0)
        entropy = torch.special.entr(mean).sum(-1)
        expected = {
            "particle_log_probs": own.sum(-1),
            "log_probs": mean.log().gather(-1, tokens[:, None]).sum(),
            "mixture_log_probs": own.sum(-1).exp().mean().log(),
            "entropy": entropy.mean(),
            "mutual_information": (
                entropy - torch.special.entr(log_probs.exp()).sum(-1).mean(0)
            ).mean(),
        }
        for name, value in expected.items():
            torch.testing.assert_close(
                getattr(found, name)[..., row].double(), value, atol=1e-5, rtol=1e-4, msg=name
            )


def test_a_written_answer_is_scored_as_it_was_written():
    posterior, tokenizer = small_writers(), small_tokenizer()
    written = posterior.generate(QUESTIONS, tokenizer=tokenizer, max_new_tokens=7)
    answers = [row[:n] for row, n in zip(written.tokens, written.lengths, strict=True)]
    scored = posterior.score(QUESTIONS, answers, tokenizer=tokenizer)
    assert scored.texts == written.texts
    assert torch.equal(scored.tokens, written.tokens)
    for name in ("particle_token_log_probs", "token_log_probs", "token_entropy"):
        torch.testing.assert_close(getattr(scored, name), getattr(written, name))
    torch.testing.assert_close(
        scored.token_mutual_information, written.token_mutual_information, atol=1e-5, rtol=1e-3
    )


def test_the_probabilities_of_all_answers_of_one_token_sum_to_one():
    posterior, tokenizer = small_writers(), small_tokenizer()
    prompt = prompt_tokens(QUESTIONS[0], tokenizer)
    vocabulary = posterior.network.config.vocab_size
    found = posterior.score(
        [prompt] * vocabulary, list(torch.arange(vocabulary)[:, None]), batch_size=64
    )
    assert found.log_probs.exp().sum() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found.log_probs, found.mixture_log_probs)
    torch.testing.assert_close(found.particle_log_probs.exp().sum(1), torch.ones(3))


def test_messages_go_through_the_chat_template():
    tokenizer = small_tokenizer()
    chat = [{"role": "user", "content": "who are you ?"}]
    numbers = prompt_tokens(chat, tokenizer)
    assert tokenizer.decode(numbers) == "user who are you ? . assistant"
    posterior = small_writers()
    one = posterior.generate(chat, tokenizer=tokenizer, max_new_tokens=3)
    two = posterior.generate([chat, chat], tokenizer=tokenizer, max_new_tokens=3)
    assert len(one) == 1
    assert two.texts == one.texts * 2
    tokenizer.chat_template = None
    with pytest.raises(BellaError, match="no chat template"):
        posterior.generate(chat, tokenizer=tokenizer)


def test_a_text_that_ends_an_answer_and_a_streamer_that_hears_it():
    tokenizer = byte_tokenizer()
    network = small_language_model(words=len(tokenizer) - 3)
    posterior = bella.low_rank(network, 2, rank=2, target_modules=("up_proj",), b_std=0.5)
    letters = tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"]
    others = sorted(set(range(len(tokenizer))) - set(letters))
    options = {"tokenizer": tokenizer, "max_new_tokens": 8, "eos_token_id": None}
    options |= {"suppress_tokens": others, "do_sample": True, "temperature": 9.0, "seed": 1}
    free = posterior.generate("who ?", **options)
    first = free.tokens[0].tolist()
    place = next(t for t in range(1, 8) if first[t] not in first[:t])
    heard = []

    class Streamer:
        def put(self, tokens):
            heard.extend(tokens.flatten().tolist())

        def end(self):
            heard.append("end")

    stops = [free.pieces[0][place]]
    stopped = posterior.generate("who ?", stop_strings=stops, streamer=Streamer(), **options)
    assert stopped.pieces[0] == free.pieces[0][: place + 1]
    prompt = prompt_tokens("who ?", tokenizer).tolist()
    assert heard == [*prompt, *stopped.tokens[0].tolist(), "end"]
    with pytest.raises(BellaError, match="stop_strings need"):
        posterior.generate(torch.tensor([5]), stop_strings=stops)
    with pytest.raises(BellaError, match="cannot stop this tokenizer at texts"):
        small_writers(2).generate("who ?", tokenizer=small_tokenizer(), stop_strings=["who"])


def test_an_end_may_count():
    posterior, tokenizer = small_writers(), small_tokenizer()
    open_ = posterior.score(QUESTIONS[0], "Paris", tokenizer=tokenizer)
    ended = posterior.score(QUESTIONS[0], "Paris", tokenizer=tokenizer, ended=True)
    assert ended.tokens.tolist() == [[*open_.tokens[0].tolist(), 2]]
    assert ended.log_probs < open_.log_probs
    assert ended.texts == ("Paris",)
    assert ended.pieces == (("Paris", "<end>"),)


@pytest.mark.parametrize(
    ("prompts", "answers", "options", "said"),
    [
        (["a", "b"], ["a"], {}, "2 prompts and 1 answers"),
        ("a", "", {}, "at least one"),
        ("", "a", {}, "at least one"),
        ([], [], {}, "There are no prompts"),
        ("a", "a", {"tokenizer": None}, "tokenizer"),
        (3.5, ["a"], {}, "A prompt is a float"),
        ([7], ["a"], {}, "A prompt is a int"),
        ("a", [7], {}, "An answer is a int"),
        ("a", "a", {"batch_size": 0}, "batch_size=0"),
        (torch.tensor([1.5]), "a", {}, "whole numbers"),
        (torch.ones(60, dtype=torch.long), torch.ones(5, dtype=torch.long), {}, "65 tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(prompts, answers, options, said):
    posterior = small_writers(2)
    with pytest.raises(BellaError, match=said):
        posterior.score(prompts, answers, **{"tokenizer": small_tokenizer()} | options)


def test_figures_of_logits_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)]], [[0.0, math.log(1 / 3)]]], dtype=torch.float64)
    particles, average, entropy, information = Figures(logits).of(torch.tensor([1]))
    assert particles.exp().flatten().tolist() == pytest.approx([0.75, 0.25])
    assert average.exp().tolist() == pytest.approx([0.5])
    assert entropy.tolist() == pytest.approx([math.log(2)])
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert information.tolist() == pytest.approx([math.log(2) - quarter])
    # Of particles that agree the averaged logits are theirs, and not only in proportion.
    same = torch.tensor([[1.0, -2.0, 5.0]] * 3, dtype=torch.float64)
    torch.testing.assert_close(Figures(same).logits(), same[0])
    with pytest.raises(BellaError, match="not finite"):
        Figures(torch.tensor([[0.0, math.nan]]))


def test_batches_of_answers_are_joined_and_read():
    posterior, tokenizer = small_writers(2), small_tokenizer()
    whole = posterior.score(QUESTIONS, ANSWERS, tokenizer=tokenizer)
    parts = [
        posterior.score(q, a, tokenizer=tokenizer) for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    joined = Answers.cat(parts)
    assert joined.texts == whole.texts
    torch.testing.assert_close(joined.particle_log_probs, whole.particle_log_probs)
    row = joined.rows()[1]
    assert row["answer"] == "in Norway ."
    assert [token["token"] for token in row["tokens"]] == ["in", "Norway", "."]
    assert sum(token["log_prob"] for token in row["tokens"]) == pytest.approx(row["log_prob"], 1e-4)
    assert len(row["particle_log_probs"]) == 2
    with pytest.raises(BellaError, match="no prompts"):
        Answers.cat([])


def test_padding_on_both_sides():
    rows = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    ids, mask = left_padded(rows, 9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = right_padded(rows, 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_point_scores_as_its_network():
    posterior, tokenizer = small_writers(2), small_tokenizer()
    alone = bella.Point(posterior.particle(1)).score(QUESTIONS, ANSWERS, tokenizer=tokenizer)
    both = posterior.score(QUESTIONS, ANSWERS, tokenizer=tokenizer)
    torch.testing.assert_close(alone.log_probs, both.particle_log_probs[1])
    assert (alone.mutual_information == 0).all()
