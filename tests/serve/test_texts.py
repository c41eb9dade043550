"""Texts over HTTP, for every task: answers are those of `bella predict` and `bella generate`."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest
import torch
from serve_cases import opened, served

from bella.errors import BellaError
from bella.runs import TextRun
from bella.runs.writing import Writer
from bella.serve import Limits, make_app
from bella.serve.kinds import kind_of
from bella.serve.referral import referral

NAMES = ("blue", "green", "red")
TEXTS = ["what is red", "a city in Norway where", "yes", "who are you ? blue blue blue"]


def rows_of(run, rows, path):
    """What `bella predict` says of rows in a file."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return run.predict(path).rows()


def at_once(client, path, contents):
    """The answers to requests of one example each, asked at the same time."""
    found = {}

    def ask(i, content):
        told = client.post(path, content)
        assert told.status == 200, told.content
        ((found[i],),) = (next(iter(told.json.values())),)

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(contents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(contents))]


def test_classes_of_texts(networks, tmp_path):
    run = opened(networks, "text", {"text": "review", "label": "kind"}, {"classes": list(NAMES)})
    rows = rows_of(run, [{"review": text} for text in TEXTS], tmp_path / "rows.jsonl")
    with served(make_app(run, Limits(wait=0.2))) as client:
        together = client.post("/v1/predict", {"texts": TEXTS}).json["predictions"]
        alone = at_once(client, "/v1/predict", [{"texts": [{"text": text}]} for text in TEXTS])
        assert client.get("/v1/run").json["pair"] is False
        for texts, said in (
            ([{"text": "a", "pair": "b"}], "Text 1 has a second one"),
            (["yes", " "], "Text 2 is empty"),
            (["\ud800"], "surrogate"),
            ([], "at least 1 item"),
        ):
            told = client.post("/v1/predict", {"texts": texts})
            assert told.status == 422, told.content
            assert said in told.json["detail"] or said == "surrogate"
    for answers in (together, alone):
        for answer, row in zip(answers, rows, strict=True):
            assert answer["class"] == row["class"]
            for name in ("probability", "entropy", "mutual_information"):
                assert answer[name] == pytest.approx(row[name], abs=1.5e-6)
            for name in NAMES:
                assert answer["probabilities"][name] == pytest.approx(row[f"p({name})"], abs=1.5e-6)


def test_texts_in_another_precision_and_writing_in_none(networks, writer):
    run = opened(networks, "text", {"text": "review", "label": "kind"}, {"classes": list(NAMES)})
    with served(make_app(run)) as client:
        exact = client.post("/v1/predict", {"texts": TEXTS}).json["predictions"]
    run = dataclasses.replace(run, precision="bf16")
    with served(make_app(run)) as client:
        assert any(p.dtype == torch.bfloat16 for p in run.posterior.network.parameters())
        rounded = client.post("/v1/predict", {"texts": TEXTS}).json["predictions"]
    for a, b in zip(rounded, exact, strict=True):
        assert 0 < abs(a["probability"] - b["probability"]) < 0.02
    with pytest.raises(BellaError, match="'bf16': language models write in float32"):
        make_app(dataclasses.replace(writer, precision="bf16"))


def test_pairs_of_texts_and_texts_that_are_too_long(networks, tmp_path):
    columns = {"text": "premise", "pair": "claim", "label": "kind"}
    run = opened(networks, "text", columns, {"classes": list(NAMES)})
    pairs = [{"text": text, "pair": "yes no"} for text in TEXTS]
    file = [{"premise": text, "claim": "yes no"} for text in TEXTS]
    rows = rows_of(run, file, tmp_path / "rows.jsonl")
    with served(make_app(run, Limits(characters=100))) as client:
        answers = client.post("/v1/predict", {"texts": pairs}).json["predictions"]
        assert client.get("/v1/run").json["pair"] is True
        lone = client.post("/v1/predict", {"texts": TEXTS[:1]})
        assert (lone.status, "trained on pairs" in lone.json["detail"]) == (422, True)
        long = client.post("/v1/predict", {"texts": [{"text": "a" * 60, "pair": "b" * 60}]})
        assert (long.status, long.json["detail"]) == (
            413,
            "A text has 120 characters: at most 100.",
        )
    for answer, row in zip(answers, rows, strict=True):
        assert answer["entropy"] == pytest.approx(row["entropy"], abs=1.5e-6)


def test_numbers_in_their_own_units(networks, tmp_path):
    columns = {"text": "review", "label": "stars"}
    run = opened(networks, "regression", columns, {"mean": 200.0, "std": 80.0})
    rows = rows_of(run, [{"review": text} for text in TEXTS], tmp_path / "rows.jsonl")
    with served(make_app(run, threshold=0.0)) as client:
        answers = client.post("/v1/predict", {"texts": TEXTS}).json["predictions"]
    for answer, row in zip(answers, rows, strict=True):
        for name in ("mean", "std", "low_90", "high_90", "entropy", "mutual_information"):
            assert answer[name] == pytest.approx(row[name], rel=1e-5, abs=2e-6), name
        both = answer["aleatoric_std"] ** 2 + answer["epistemic_std"] ** 2
        assert both == pytest.approx(answer["std"] ** 2, rel=1e-5)
        mean = sum(vote["mean"] for vote in answer["votes"]) / 3
        assert mean == pytest.approx(answer["mean"], rel=1e-5)
        assert answer["refer"] is (answer["entropy"] >= 0)
    with pytest.raises(BellaError, match="Only runs with classes are calibrated"):
        referral(run, tmp_path / "rows.jsonl")


@pytest.mark.parametrize("options_by", ["mean", "letter"])
@pytest.mark.parametrize("columns", ["choices", "a,b,c"])
def test_questions_with_options(networks, tmp_path, options_by, columns):
    named = {"question": "question", "options": columns, "answer": "answer"}
    facts = {"classes": ["A", "B", "C"]}
    run = opened(networks, "multiple-choice", named, facts, "llama", options_by=options_by)
    asked = [
        {"question": "what is the capital of France ?", "options": ["Paris", "Rome", "a city"]},
        {"question": "who", "options": ["you", "where are you", "red"]},
    ]
    file = [
        {"question": one["question"]}
        | (
            {"choices": one["options"]}
            if columns == "choices"
            else dict(zip("abc", one["options"], strict=True))
        )
        for one in asked
    ]
    rows = rows_of(run, file, tmp_path / "rows.jsonl")
    with served(make_app(run, Limits(wait=0.2))) as client:
        together = client.post("/v1/predict", {"questions": asked}).json["predictions"]
        alone = at_once(client, "/v1/predict", [{"questions": [one]} for one in asked])
        assert client.get("/v1/run").json["options"] == 3
        few = client.post("/v1/predict", {"questions": [{"question": "a", "options": ["a", "b"]}]})
        assert (few.status, few.json["detail"][:24]) == (422, "Question 1 has 2 options")
    for answers in (together, alone):
        for answer, row in zip(answers, rows, strict=True):
            assert answer["class"] == row["class"]
            for name in "ABC":
                assert answer["probabilities"][name] == pytest.approx(row[f"p({name})"], abs=2e-6)


@pytest.fixture(scope="module")
def writer(networks):
    return opened(networks, "causal-lm", {"messages": "messages"}, {}, "llama")


def test_answers_of_a_language_model(writer):
    lines = [
        {"prompt": "what is the capital of France ?"},
        {"prompt": "who"},
        {"messages": [{"role": "user", "content": "who are you"}]},
    ]
    plain = Writer(writer.posterior, writer.asked.tokenizer)
    rows = plain.answer(lines, max_new_tokens=6, do_sample=False)
    with served(make_app(writer, Limits(wait=0.2, batch=8))) as client:
        asked = {"prompts": [lines[0]["prompt"], *lines[1:]], "max_new_tokens": 6}
        together = client.post("/v1/generate", asked).json["answers"]
        requests = [{"prompts": [line], "max_new_tokens": 6} for line in lines]
        alone = at_once(client, "/v1/generate", requests)
        given = [line | {"answer": row["answer"]} for line, row in zip(lines, rows, strict=True)]
        scored = client.post("/v1/score", {"given": given}).json["answers"]
        assert client.get("/v1/run").json["chat"] is True
        assert b"bella_mutual_information_nats_count 9.0" in client.get("/metrics").content
    for answers in (together, alone):
        for answer, row in zip(answers, rows, strict=True):
            assert answer["answer"] == row["answer"]
            assert answer["log_prob"] == pytest.approx(row["log_prob"], abs=1e-4)
            assert answer["mutual_information"] == pytest.approx(
                row["mutual_information"], abs=1e-5
            )
            assert [t["token"] for t in answer["tokens"]] == [t["token"] for t in row["tokens"]]
    known = plain.answer(given, given=True)
    for answer, row in zip(scored, known, strict=True):
        assert answer["particle_log_probs"] == pytest.approx(row["particle_log_probs"], abs=1e-4)


def test_drawn_answers_follow_their_seed_whoever_else_asks(writer):
    drawn = {"prompts": ["who are you"], "max_new_tokens": 5, "sample": True, "temperature": 2.0}
    with served(make_app(writer, Limits(wait=0.1, batch=8))) as client:
        alone = client.post("/v1/generate", drawn | {"seed": 3}).json["answers"][0]
        several = at_once(client, "/v1/generate", [drawn | {"seed": seed} for seed in (1, 2, 3, 3)])
    assert several[2] == several[3] == alone
    assert len({json.dumps(answer) for answer in several}) > 1


@pytest.mark.parametrize(
    ("path", "asked", "status", "said"),
    [
        ("generate", {"prompts": ["a"], "top_k": 3}, 422, "top_k is for sample"),
        ("generate", {"prompts": ["a"], "max_new_tokens": 21}, 413, "20 tokens"),
        ("generate", {"prompts": ["a"] * 9}, 413, "9 examples"),
        ("generate", {"prompts": ["who " * 60], "max_new_tokens": 9}, 422, "69 tokens"),
        ("generate", {"prompts": [{}]}, 422, "Prompt 1 must have either"),
        ("generate", {"prompts": [{"messages": [{"role": "dog", "content": "a"}]}]}, 422, "role"),
        ("generate", {"prompts": ["a"], "temperature": 5e-324}, 422, "than or equal to 0.001"),
        ("score", {"given": [{"prompt": "a"}]}, 422, "answer"),
        ("predict", {"texts": ["a"]}, 404, "Not Found"),
    ],
)
def test_what_a_language_model_does_not_answer(writer, path, asked, status, said):
    with served(make_app(writer, Limits(batch=8, tokens=20))) as client:
        told = client.post(f"/v1/{path}", asked)
    assert told.status == status
    assert said in told.json["detail"]


def test_a_run_of_no_known_kind_is_refused(writer):
    class Strange:
        name = "poems"

    run = TextRun(writer.posterior, Strange(), writer.asked, "llama")
    with pytest.raises(BellaError, match="'poems' are not served"):
        kind_of(run)
