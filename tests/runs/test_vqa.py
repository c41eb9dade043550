"""A run on questions about pictures, end to end on a little network, and its files."""

from __future__ import annotations

import csv
import json
import warnings

import pytest
import torch
from set_files import write_vqa
from vqa_cases import save_llava, save_questions

from bella import BellaError
from bella.metrics import vqa
from bella.models.seeing import open_seeing
from bella.runs import VqaConfig, open_run, train_vqa
from bella.runs.material import Asked, run_materials
from bella.runs.vqa.opened import figures
from bella.runs.vqa.questions import Pictured, prompt_tokens, read_questions
from bella.serve.kinds import kind_of

PROMPT = "<image> question {question} answer"


def config(place, **more):
    asked = {
        "task": "vqa",
        "data": str(place / "data" / "questions.jsonl"),
        "network": f"hf:{place / 'net'}",
        "prompt": PROMPT,
        "particles": 2,
        "rank": 2,
        "epochs": 2,
        "batch_size": 4,
        "projector_epochs": 2,
        "learning_rate": 0.01,
    }
    return VqaConfig(**asked | more)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa")
    save_llava(folder / "net")
    save_questions(folder / "data", 40)
    lines: list[str] = []
    train_vqa(config(folder), folder / "run", tell=lambda found: lines.extend(found.lines()))
    (folder / "told").write_text("\n".join(lines))
    return folder


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_folder_holds_answers_with_what_people_said(place):
    rows = rows_of(place / "run" / "answers.jsonl")
    assert len(rows) == 10
    for row in rows:
        assert list(row) == [
            "image",
            "question",
            "type",
            "people",
            "answer",
            "log_prob",
            "entropy",
            "mutual_information",
            "accuracy",
            "exact_match",
            "human_confidence",
        ]
        assert row["human_confidence"] == 0.8
        assert row["accuracy"] == vqa.vqa_accuracy(row["answer"], row["people"])
        assert row["entropy"] > 0 <= row["mutual_information"]
    assert {row["type"] for row in rows} <= {"yes/no", "other"}
    found = json.loads((place / "run" / "figures.json").read_text())
    again = {k: v for k, v in figures(rows).items() if v == v}
    assert {k: v for k, v in found.items() if v is not None} == pytest.approx(again)
    alike = torch.tensor(json.loads((place / "run" / "similarity.json").read_text())["similarity"])
    torch.testing.assert_close(alike.diagonal(), torch.ones(2))
    assert alike.shape == (2, 2)


def test_what_a_training_begins_with_is_told(place):
    told = (place / "told").read_text()
    assert "24 train, 6 validation, 10 test; those to train on are about 24 pictures" in told
    assert "the run's own projector" in told
    assert "2 epochs of 6 steps, 12 in all, on cpu" in told


def test_the_particles_are_coupled_over_a_cached_prefix(place):
    settings = json.loads((place / "run" / "run.json").read_text())["settings"]
    assert settings["transport"] == "repulsive"
    assert settings["cache_prefix"] is True


def test_a_run_that_is_opened_answers_as_it_did(place):
    run = open_run(place / "run")
    rows = rows_of(place / "run" / "answers.jsonl")
    questions = run.questions(str(place / "data" / "questions.jsonl"))
    mine = {(row["image"], row["question"]): row for row in run.answer(questions, batch_size=7)}
    for row in rows:
        again = mine[row["image"], row["question"]]
        assert again["answer"] == row["answer"]
        assert again["log_prob"] == pytest.approx(row["log_prob"], abs=1e-4)
        assert again["entropy"] == pytest.approx(row["entropy"], abs=1e-4)
    assert run.evaluate(place / "data" / "questions.jsonl")["questions"] == 40


def test_an_answer_is_that_of_the_averaged_next_token_distribution(place):
    run = open_run(place / "run")
    (question,) = run.questions(str(place / "data" / "questions.jsonl"))[:1]
    (row,) = run.answer([question])
    networks = [run.posterior.particle(i) for i in range(2)]
    tokens = prompt_tokens(question, run.seeing, PROMPT)
    picture = Pictured([question], run.seeing, PROMPT)[0]["pixel_values"][None]
    entropy, end = [], run.seeing.tokenizer.eos_token_id
    for _ in range(run.answer_tokens):
        ids = torch.tensor([tokens])
        with torch.no_grad():
            probs = torch.stack(
                [n(input_ids=ids, pixel_values=picture).logits[0, -1].softmax(-1) for n in networks]
            ).mean(0)
        entropy.append(-(probs * probs.log()).sum())
        tokens = [*tokens, int(probs.argmax())]
        if tokens[-1] == end:
            break
    said = tokens[-len(entropy) :]
    assert row["answer"] == run.seeing.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert row["entropy"] == pytest.approx(float(torch.stack(entropy).mean()), abs=1e-4)


def test_the_same_command_goes_on_and_keeps_its_projector(place):
    before = (place / "run" / "projector.safetensors").read_bytes()
    found = train_vqa(config(place), place / "run")
    assert (place / "run" / "projector.safetensors").read_bytes() == before
    assert found["questions"] == 10
    with pytest.raises(BellaError, match="prompt"):
        train_vqa(config(place, prompt="<image> {question}"), place / "run")


def test_predictions_need_no_answers(place, tmp_path):
    asked = tmp_path / "asked.csv"
    asked.write_text(f"picture,question\n{place / 'data' / '1.png'},what color is it\n")
    said = open_run(place / "run").predict(asked)
    (row,) = said.rows()
    assert row["rank"] == 1
    assert not {"accuracy", "people"} & set(row)
    said.write(tmp_path / "out.csv")
    (written,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert written["answer"] == row["answer"]
    said.write(tmp_path / "out.jsonl")
    assert rows_of(tmp_path / "out.jsonl") == [row]
    with pytest.raises(BellaError, match="are written as"):
        said.write(tmp_path / "out.txt")
    with pytest.raises(BellaError, match="Nobody's answers"):
        figures(said.rows())


def test_what_runs_on_classes_have_is_refused(place):
    run = open_run(place / "run")
    with pytest.raises(BellaError, match="'vqa' are not served"):
        kind_of(run)
    with pytest.raises(BellaError, match="ood is for runs on images"):
        run.evaluate(place / "data" / "questions.jsonl", ood=[place / "data"])
    with pytest.raises(BellaError, match="writes answers"):
        run_materials([place / "run"], Asked())
    with pytest.raises(BellaError, match="choose 'auto', 'float32', 'bf16' or 'fp16'"):
        open_run(place / "run", precision="half")


def test_answers_are_written_in_the_precision_that_is_asked_for(place):
    whole, fewer = (open_run(place / "run", precision=name) for name in ("float32", "bf16"))
    questions = whole.questions(str(place / "data" / "questions.jsonl"))
    gaps = [
        abs(one["entropy"] - other["entropy"])
        for one, other in zip(whole.answer(questions), fewer.answer(questions), strict=True)
        if one["answer"] == other["answer"]
    ]
    assert len(gaps) > len(questions) / 2
    assert 0 < max(gaps) < 0.1


def test_one_particle_has_no_similarity_and_no_information(place, tmp_path):
    found = train_vqa(config(place, particles=1, epochs=1, projector=str(place / "run")), tmp_path)
    assert not (tmp_path / "similarity.json").exists()
    own = (place / "run" / "projector.safetensors").read_bytes()
    assert (tmp_path / "projector.safetensors").read_bytes() == own
    assert found["mi_wrong"] == pytest.approx(0, abs=1e-6)


def test_texts_stand_at_the_right_and_answers_alone_count(place):
    seeing = open_seeing(f"hf:{place / 'net'}")
    questions = read_questions(str(place / "data" / "questions.jsonl"))["train"]
    data = Pictured(questions, seeing, PROMPT)
    for i, question in enumerate(questions):
        item = data[i]
        assert len(item["input_ids"]) == data.length
        assert item["attention_mask"].diff().min() >= 0
        told = item["labels"][item["labels"] >= 0]
        assert seeing.tokenizer.decode(told) == f"{question.answer} <end>"
        assert item["labels"][0] == -100  # nothing stands before it that could predict it
        counted = item["input_ids"][item["attention_mask"].bool()]
        assert (counted == seeing.patch).sum() == seeing.patches


def test_the_files_of_vqa_v2_are_read_with_their_people(tmp_path):
    asked = [(n, f"what is {n}", f"thing {n % 2}", "other") for n in range(1, 21)]
    write_vqa(tmp_path, "train2014", asked)
    write_vqa(
        tmp_path, "val2014", [(30, "is it", "yes", "yes/no"), (31, "how many", "7", "number")]
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*a part of it, or a choice")
        found = read_questions(str(tmp_path))
    assert len(found["train"]) + len(found["validation"]) == 20
    first, second = found["test"]
    assert (first.kind, second.kind) == ("yes/no", "number")
    assert first.people == ("yes",) * 7 + ("unsure",) * 3
    assert first.answer == "yes"
    judged = vqa.judged("Yes.", first.people)
    assert judged == {"accuracy": 1.0, "exact_match": True, "human_confidence": 0.7}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"image": "1.png", "question": "", "people": ["a"]}, "as its question"),
        ({"image": 3, "question": "what", "people": ["a"]}, "as its picture"),
        ({"image": "1.png", "question": "what", "people": [1]}, "as its answer"),
        ({"image": "1.png", "question": "what", "people": []}, "as its answer"),
        ({"image": "1.png", "question": "what", "people": "[" * 100_000}, "as its answer"),
        ({"image": "1.png", "question": "what", "people": "a", "type": "odd"}, "of the type"),
        ({"picture": "1.png", "people": "a"}, "is the question cannot be told"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, line, said):
    good = {"image": "1.png", "question": "what", "people": "a"}
    path = tmp_path / "q.jsonl"
    rows = [line] * 30 if "picture" in line else [good, line] * 15
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BellaError, match=said):
        read_questions(str(path))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "laplace"}, "draws other weights"),
        ({"mixture": "linear"}, "mixture is for runs on images"),
        ({"head_init": "probe"}, "leave out --heads"),
        ({"data": "digits"}, "easy-vqa, vqa2 have questions"),
        ({"network": "llava"}, "near are 'llava-smollm2'"),
        ({"prompt": "<image> what"}, "must hold {question}"),
        ({"projector": "no-file"}, "no file of a projector"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    place, tmp_path, more, said
):
    with pytest.raises(BellaError, match=said):
        train_vqa(config(place, **more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fewer_questions_are_validated_on_fewer(tmp_path):
    file = str(save_questions(tmp_path, 60))
    whole, some = read_questions(file), read_questions(file, limit=9, test_limit=4)
    assert len(whole["validation"]) > 1
    assert {part: len(one) for part, one in some.items()} == {
        "train": 9,
        "validation": 1,
        "test": 4,
    }


def test_figures_of_a_kind_carry_its_name():
    rows = [
        {
            "type": "yes/no",
            "accuracy": float(right),
            "exact_match": right,
            "entropy": entropy,
            "mutual_information": 0.0,
        }
        for right, entropy in ((True, 0.1), (True, 0.2), (False, 0.9))
    ]
    found = figures(rows)
    assert found["accuracy"] == found["accuracy_yes_no"] == pytest.approx(2 / 3)
    assert found["auroc_errors_entropy"] == 1.0
    assert found["auroc_errors_mi"] != found["auroc_errors_mi"]  # one particle cannot disagree
    assert "accuracy_other" not in found
