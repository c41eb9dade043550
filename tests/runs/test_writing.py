"""A saved posterior answers prompts from a file."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from language_cases import small_language_model, small_tokenizer, small_writers

from bella import BellaError
from bella.cli import main
from bella.files import write_sealed_json
from bella.runs.writing import open_writer, read_prompts

LINES = [
    {"prompt": "what is the capital of France ?", "id": 7},
    {"messages": [{"role": "user", "content": "where is Oslo ?"}]},
    {"prompt": "who are you ?", "answer": "a city in Spain"},
]


@pytest.fixture
def places(tmp_path):
    """A network, a posterior on it, and prompts, on disk."""
    small_language_model().save_pretrained(tmp_path / "network")
    small_tokenizer().save_pretrained(tmp_path / "network")
    small_writers().save(tmp_path / "run")
    text = "\n".join(json.dumps(line) for line in LINES)
    (tmp_path / "prompts.jsonl").write_text(text + "\n\n", encoding="utf-8")
    return tmp_path


def run(*words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bella", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_the_command_writes_what_the_posterior_says(places, monkeypatch, capsys):
    out = places / "answers.jsonl"
    words = ("generate", places / "run", places / "prompts.jsonl", "--max-new-tokens", 4)
    network = f"hf:{places / 'network'}"
    code = run(*words, "--out", out, "--network", network, monkeypatch=monkeypatch)
    assert code == 0
    assert "most disputed of 3 answers" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["id"] == 7
    posterior, tokenizer = small_writers(), small_tokenizer()
    asked = [line.get("prompt") or line["messages"] for line in LINES]
    said = posterior.generate(asked, tokenizer=tokenizer, max_new_tokens=4)
    for row, truth in zip(rows, said.rows(), strict=True):
        assert row["answer"] == truth["answer"]
        assert row["mutual_information"] == pytest.approx(truth["mutual_information"], abs=2e-6)
        assert len(row["particle_log_probs"]) == 3
    # The network's name may stand in the folder.
    write_sealed_json(places / "run" / "model.json", {"network": network})
    before = out.read_bytes()
    assert run(*words, "--out", out, "--json", monkeypatch=monkeypatch) == 0
    assert out.read_bytes() == before
    assert json.loads(capsys.readouterr().out) == rows


def test_each_particle_samples_and_given_answers_are_scored(places, monkeypatch, capsys):
    out = places / "answers.jsonl"
    words = ("generate", places / "run", places / "prompts.jsonl", "--out", out, "--quiet")
    words += ("--network", f"hf:{places / 'network'}")
    drawn = ("--each", "--sample", "--top-p", 0.9, "--max-new-tokens", 3, "--seed", 3)
    found = []
    for _ in range(2):
        assert run(*words, *drawn, "--batch-size", 2, monkeypatch=monkeypatch) == 0
        found.append(out.read_text(encoding="utf-8"))
    assert found[0] == found[1]
    rows = [json.loads(line) for line in found[0].splitlines()]
    assert [len(row["particles"]) for row in rows] == [3, 3, 3]
    (places / "prompts.jsonl").write_text(json.dumps(LINES[2]), encoding="utf-8")
    assert run(*words, "--score", monkeypatch=monkeypatch) == 0
    (row,) = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    truth = small_writers().score(
        LINES[2]["prompt"], LINES[2]["answer"], tokenizer=small_tokenizer()
    )
    assert row["log_prob"] == pytest.approx(float(truth.log_probs), abs=1e-5)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--score",), "Prompt 1 has no 'answer'"),
        (("--top-p", "0.5"), "--top-p is for --sample"),
        (("--score", "--each"), "--score writes no answers"),
        (
            ("--sample", "--temperature", "0", "--max-new-tokens", "4"),
            "transformers' generate refuses this",
        ),
        (("--sample", "--temperature", "5e-324"), "give a number of at least 1e-30"),
        (("--sample", "--temperature", "nan"), "give a number of at least 1e-30"),
        (("--sample", "--temperature", "inf"), "give a number of at least 1e-30"),
        (("--sample", "--top-p", "2"), "it is a probability"),
    ],
)
def test_what_does_not_go_together_is_refused(places, monkeypatch, capsys, words, said):
    code = run(
        "generate",
        places / "run",
        places / "prompts.jsonl",
        "--network",
        f"hf:{places / 'network'}",
        "--out",
        places / "out.jsonl",
        *words,
        monkeypatch=monkeypatch,
    )
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (places / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompts"),
        ("{", "Line 1 .* is no JSON"),
        ("[" * 200_000, "Line 1 .* is no JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "Line 1 .* is no JSON"),
        ('{"prompt": "a"}\n[]', "Line 2 .* is a list"),
        ('{"question": "a"}', "it has 'question'"),
        ('{"prompt": "a", "messages": []}', "either"),
        ('{"prompt": ""}', "something in it"),
        ('{"messages": [{"role": "user"}]}', "role and content"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(tmp_path, text, said):
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(BellaError, match=said):
        read_prompts(tmp_path / "prompts.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BellaError, match=r"gone.jsonl cannot be read \(No such file"):
        read_prompts(tmp_path / "gone.jsonl")


def test_prompts_may_be_what_a_user_says(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('\ufeff{"prompt": "who are you ?"}', encoding="utf-8")
    (line,) = read_prompts(path, chat=True)
    assert line["messages"] == [{"role": "user", "content": "who are you ?"}]
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(BellaError, match="not UTF-8"):
        read_prompts(path)


def test_a_folder_that_names_no_network_asks_for_it(places):
    with pytest.raises(BellaError, match="--network"):
        open_writer(places / "run")
    write_sealed_json(places / "run" / "model.json", {"network": 3})
    with pytest.raises(BellaError, match="--network"):
        open_writer(places / "run")


def test_prompts_at_once_change_no_answer_and_no_random_number(places):
    writer = open_writer(places / "run", f"hf:{places / 'network'}", device="cpu")
    before = torch.get_rng_state()
    rows = writer.answer(read_prompts(places / "prompts.jsonl"), batch_size=1, max_new_tokens=2)
    together = writer.answer(read_prompts(places / "prompts.jsonl"), max_new_tokens=2)
    assert [row["answer"] for row in rows] == [row["answer"] for row in together]
    assert torch.equal(torch.get_rng_state(), before)
