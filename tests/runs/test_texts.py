"""Runs on texts: from a file to a run folder, and back again, for each task."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from language_cases import WORDS, small_language_model, small_reader, small_tokenizer
from set_files import write_reviews as write_uci

import bella
from bella.evaluation.tokens import evaluate_tokens
from bella.likelihood import nll
from bella.recipes import KINDS
from bella.runs import open_run, read_config, train_text
from bella.runs.texts import TASKS, TextConfig
from bella.runs.texts.base import Asked
from bella.runs.texts.causal import chat_tokens, messages_of
from bella.runs.writing import open_writer

FEW = {"epochs": 2, "batch_size": 8, "particles": 2, "rank": 2, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A small BERT with a tokenizer, as a folder that transformers saved."""
    return small_reader(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A small Llama with a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("llama")
    small_language_model().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return f"hf:{folder}"


def rows_of(count=48):
    """Reviews whose word says their class, and the number that it stands for."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        filler = [WORDS[int(k)] for k in torch.randint(0, 8, (1 + i % 4,), generator=generator)]
        word = ("red", "blue", "green")[i % 3]
        found.append({"review": " ".join([*filler, word]), "kind": word, "stars": str(1 + i % 3)})
    return found


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def asked(**values):
    return read_config(None, FEW | {"target_modules": ["auto"]} | values, {"": TextConfig})


@pytest.fixture(scope="module")
def classified(reader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = write_csv(folder / "reviews.csv", rows_of())
    config = asked(
        task="text",
        data=str(data),
        network=reader,
        columns={"text": "review", "label": "kind"},
        epochs=6,
    )
    return folder / "run", data, train_text(config, folder / "run", progress=False), config


def test_a_classifier_from_a_csv(classified):
    folder, data, found, config = classified
    assert found["accuracy"] > 0.5  # by chance a third
    run = open_run(folder)
    assert run.classes == ("blue", "green", "red")
    kept = json.loads((folder / "figures.json").read_text())
    assert kept["nll"] == pytest.approx(found["nll"])
    again = run.evaluate(data, ood=data)
    assert set(again) >= {"accuracy", "ece", "auroc_ood_entropy", "accuracy_ood"}
    assert again["auroc_ood_entropy"] == pytest.approx(0.5)  # the same rows
    assert train_text(config, folder, progress=False) == found  # finished: nothing is trained


@pytest.fixture(scope="module")
def mixed(reader, tmp_path_factory):
    """Rows enough for a mixture."""
    folder = tmp_path_factory.mktemp("mixed")
    data = write_csv(folder / "reviews.csv", rows_of(96))
    columns = {"text": "review", "label": "kind"}
    config = asked(task="text", data=str(data), network=reader, columns=columns)
    return folder / "run", data, train_text(config, folder / "run", progress=False)


def test_its_particles_are_pooled_with_readouts_of_the_frozen_network(mixed, tmp_path):
    folder, data, found = mixed
    run = open_run(folder)
    assert isinstance(run.mixture, bella.Mixture)
    assert {"nll", "accuracy"} <= set(found)
    tokens = run.tokenised(_records(data), labelled=True)
    said = bella.evaluate(run.mixture, run.loader(tokens))
    assert run.figures(tokens, {})["nll"] == pytest.approx(said["nll"])
    assert said["nll"] != pytest.approx(bella.evaluate(run.posterior, run.loader(tokens))["nll"])
    rows = run.predict(data).rows()
    assert all(isinstance(row["novelty"], float) for row in rows)
    # What is longer than any other row only pads the batch: a mixture reads past padding too.
    longer = write_csv(tmp_path / "more.csv", [*rows_of(8), {"review": "red " * 25, "kind": "red"}])
    alone = write_csv(tmp_path / "few.csv", rows_of(8))
    one, other = (open_run(folder).predict(path).rows()[:8] for path in (longer, alone))
    for padded, plain in zip(one, other, strict=True):
        assert padded["novelty"] == pytest.approx(plain["novelty"], abs=1e-3)
        assert padded["p(red)"] == pytest.approx(plain["p(red)"], abs=1e-4)


def test_what_it_promises_is_promised_on_rows_that_it_does_not_try(mixed, tmp_path):
    folder, *_ = mixed
    rows = rows_of(240)
    kept = [
        write_csv(tmp_path / f"{name}.csv", some)
        for name, some in (
            ("calibration", [r | {"review": f"{r['review']} a"} for r in rows[:120]]),
            ("trial", rows[120:]),
        )
    ]
    run = open_run(folder)
    found = run.evaluate(kept[1], calibrate=kept[0], promises={"miss": 0.2, "risk": 0.5})
    assert found["decisions"]["sets"]["parts"]["trial"]["coverage"] > 0.6
    assert set(found["intervals"]) >= {"auroc_errors_entropy"}
    with pytest.raises(bella.BellaError, match="among those to evaluate on"):
        run.evaluate(kept[1], calibrate=kept[1])
    with pytest.raises(bella.BellaError, match="corruptions is for runs on images"):
        run.evaluate(kept[1], corruptions=["fog"])


@pytest.mark.filterwarnings("ignore:.*the published")
def test_a_set_by_name_trains_with_its_own_parts_and_shifts(reader, tmp_path):
    write_uci(tmp_path / "uci")
    config = asked(
        task="text", data="drug-reviews", folder=str(tmp_path / "uci"), network=reader, limit=40
    )
    found = train_text(config, tmp_path / "run", progress=False)
    assert {"auroc_birth-control_entropy", "accuracy_birth-control"} <= set(found)
    run = open_run(tmp_path / "run")
    assert run.classes == ("negative", "neutral", "positive")
    again = run.evaluate("drug-reviews", folder=tmp_path / "uci")
    for name, value in found.items():
        assert again[name] == pytest.approx(value, nan_ok=True), name
    with pytest.raises(bella.BellaError, match="folder is for a data set by name"):
        run.evaluate(tmp_path / "gone.csv", folder=tmp_path / "uci")


def test_what_does_not_write_is_not_asked_to(classified):
    folder, *_ = classified
    with pytest.raises(bella.BellaError, match="task text, which writes no text"):
        open_writer(folder)


def test_predictions_keep_the_rows_of_the_file(classified, tmp_path):
    folder, data, _, _ = classified
    rows = [
        {"review": r["review"], "class": "mine", "id": str(i)} for i, r in enumerate(rows_of(5))
    ]
    unlabelled = write_csv(tmp_path / "new.csv", rows)
    said = open_run(folder).predict([unlabelled])
    for path in (tmp_path / "p.csv", tmp_path / "p.jsonl"):
        said.write(path)
    with (tmp_path / "p.csv").open() as file:
        back = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [r["id"] for r in back] == [r["id"] for r in lines] == list("01234")
    assert {r["class_given"] for r in back} == {"mine"}
    assert {r["class"] for r in lines} <= {"blue", "green", "red"}
    probs = [float(back[0][f"p({c})"]) for c in ("blue", "green", "red")]
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    assert sorted(r["rank"] for r in lines) == [1, 2, 3, 4, 5]
    assert said.shown[:2] == ("review", "class")
    with pytest.raises(bella.BellaError, match=r"\.csv or \.jsonl"):
        said.write(tmp_path / "p.xlsx")
    with pytest.raises(bella.BellaError, match="one file"):
        open_run(folder).predict([data, data])


def test_rows_of_another_file_are_read_by_columns_that_are_named(classified, tmp_path):
    folder, data, _, _ = classified
    others = [{"said": r["review"], "is": r["kind"], "review": "red"} for r in rows_of()]
    other = write_csv(tmp_path / "other.csv", others)
    run = open_run(folder)
    named = run.by_columns({"text": "said", "label": "is"})
    assert named.evaluate(other)["nll"] == pytest.approx(run.evaluate(data)["nll"])
    assert [r["class"] for r in named.predict(other).rows()] == [
        r["class"] for r in run.predict(data).rows()
    ]
    assert named.evaluate(other, ood=data)["nll"] == named.evaluate(other)["nll"]
    with pytest.raises(bella.BellaError, match="said"):
        named.evaluate(data)
    with pytest.raises(bella.BellaError, match="task text reads text, pair, label"):
        run.by_columns({"answer": "is"})
    with pytest.raises(bella.BellaError, match="for runs on images"):
        run.predict(data, on_bad_image="skip")


def test_a_prediction_is_the_loop_of_its_particles(classified):
    """Padding and batching change nothing: each text alone, each particle merged."""
    folder, data, _, _ = classified
    run = open_run(folder)
    rows = run.predict(data).rows()
    plain = [run.posterior.particle(i).eval() for i in range(2)]
    for row in rows[:4]:
        tokens = run.asked.tokenizer(row["review"], return_tensors="pt")
        with torch.no_grad():
            probs = sum(network(**tokens).logits.softmax(-1)[0] for network in plain) / 2
        assert [row[f"p({c})"] for c in run.classes] == pytest.approx(probs.tolist(), abs=2e-5)


def test_a_stopped_run_goes_on_only_with_the_same_rows(classified, tmp_path, reader):
    _, _, _, config = classified
    data = write_csv(tmp_path / "rows.csv", rows_of())
    config = config.model_copy(update={"data": str(data)})
    train_text(config, tmp_path / "run", progress=False)
    more = config.model_copy(update={"epochs": 7})
    write_csv(data, [r | {"review": f"{r['review']} ."} for r in rows_of()])
    with pytest.raises(bella.BellaError, match="rows"):
        train_text(more, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"columns": {"text": "revew"}}, "columns are review, kind, stars"),
        ({"columns": {"text": "review"}}, "is the label cannot be told: its columns are review"),
        ({"columns": {"txt": "review"}}, "task text reads text, pair, label"),
        ({"columns": {"text": "review", "label": "review"}}, "different labels"),
        ({"task": "regression", "columns": {"text": "review", "label": "kind"}}, "needs a number"),
        ({"task": "regression", "head_init": "probe"}, "head_init 'copy'"),
        ({"task": "texts"}, "'text', 'regression'"),
        ({"head_init": "zero-shot"}, "runs on images"),
        ({"network": "smollm3"}, "smollm2"),
        ({"classes": ["red", "blue"]}, "classes is for a data set by name"),
        ({"limit": 5}, "limit is for a data set by name"),
        ({"image_size": 64}, "image_size is for runs on images"),
        ({"task": "regression", "mixture": "log"}, "a number has none"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    values, words, reader, tmp_path
):
    data = write_csv(tmp_path / "reviews.csv", rows_of())
    values = {
        "task": "text",
        "network": reader,
        "columns": {"text": "review", "label": "kind"},
    } | values
    with pytest.raises(bella.BellaError, match=words) as error:
        train_text(asked(data=str(data), **values), tmp_path / "run", progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", KINDS)
def test_every_method_takes_every_task_or_is_refused_before_it_trains(
    method, task, reader, writer, tmp_path
):
    questions = [
        {"question": "what is it ?", "options": ["red", "blue"], "answer": "AB"[i % 2]}
        for i in range(12)
    ]
    write = [{"prompt": "what is it ?", "completion": "red"}] * 12
    rows = {"multiple-choice": questions, "causal-lm": write}.get(task, rows_of(12))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": {"label": "kind"}, "regression": {"label": "stars"}}.get(task, {})
    values = {"task": task, "data": str(data), "columns": columns, "method": method}
    values["network"] = reader if task in ("text", "regression") else writer
    values |= {"epochs": 1, "batch_size": 8}
    alone = method in ("laplace", "ssvi")

    def train(**more):
        given = {k: v for k, v in (FEW | values | more).items() if k != "rank"}
        given["particles"] = 1 if alone else 2
        config = read_config(None, given, {"": TextConfig})
        return train_text(config, tmp_path / "run", progress=False)

    if task == "causal-lm" and method == "laplace":
        with pytest.raises(bella.BellaError, match="no likelihood of tokens"):
            train()
        assert not (tmp_path / "run").exists()
        return
    if task == "regression" and method not in ("low-rank", "full"):
        with pytest.raises(bella.BellaError, match="choose variance 'example'"):
            train()
        assert not (tmp_path / "run").exists()
        values["variance"] = "example"
    found = train()
    again = open_run(tmp_path / "run").evaluate(data)
    assert set(found) <= set(again)


@pytest.mark.parametrize("variance", ["learned", "example"])
def test_numbers_are_told_in_their_own_units(variance, reader, tmp_path):
    rows = [r | {"stars": str(100 * int(r["stars"]))} for r in rows_of()]
    data = write_csv(tmp_path / "reviews.csv", rows)
    config = asked(
        task="regression",
        data=str(data),
        network=reader,
        columns={"text": "review"},
        variance=variance,
        **{"epochs": 8, "learning_rate": 0.05},
    )
    found = train_text(config, tmp_path / "run", progress=False)
    assert found["rmse"] < 79  # the numbers' own spread is 82
    assert 0 <= found["coverage_90"] <= 1
    said = open_run(tmp_path / "run").predict(data).rows()
    assert all(row["low_90"] < row["mean"] < row["high_90"] for row in said)
    assert 100 < sum(row["mean"] for row in said) / len(said) < 300
    again = open_run(tmp_path / "run").evaluate(data, ood=data)
    assert again["auroc_ood_entropy"] == pytest.approx(0.5)
    assert again["rmse_ood"] == pytest.approx(again["rmse"])


# ------------------------------------------------------------ language models


def chats(count=24):
    cities = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo"}
    found = []
    for i in range(count):
        country, city = list(cities.items())[i % 4]
        turns = [
            {"role": "user", "content": f"what is the capital of {country}"},
            {"role": "assistant", "content": city},
        ]
        found.append({"messages": turns * (1 + i % 2)})
    return found


def test_only_the_assistant_s_answers_are_scored():
    tokenizer = small_tokenizer()
    tokens, spans = chat_tokens(chats(2)[1]["messages"], tokenizer, "Row 1")
    assert [tokenizer.decode(tokens[a:b]) for a, b in spans] == ["Paris .", "Paris ."] or [
        tokenizer.decode(tokens[a:b]) for a, b in spans
    ] == ["Rome .", "Rome ."]
    whole = tokenizer.decode(tokens)
    assert whole.count("user what is the capital of") == 2
    forgetful = small_tokenizer()
    forgetful.chat_template = (
        "{% for m in messages %}{% if loop.last %}{{ m['role'] }} {% endif %}{{ m['content'] }} "
        "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    )
    with pytest.raises(bella.BellaError, match="otherwise when later ones follow"):
        chat_tokens(chats(2)[1]["messages"], forgetful, "Row 1")


def test_a_completion_is_scored_and_its_prompt_is_not(writer, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "what is the capital of France ?", "completion": "Paris"},
        {"prompt": [{"role": "user", "content": "who are you"}], "completion": "a city"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    from bella.data.records import read_records

    task, tokenizer = TASKS["causal-lm"], small_tokenizer()
    records = read_records(path)["train"]
    asks = Asked(tokenizer, task.columns(records, {}))
    items = [task.tokenise(records, asks)[i] for i in range(2)]
    scored = [[t for t in item["labels"] if t != -100] for item in items]
    assert tokenizer.decode(scored[0]) == "Paris <end>"
    assert tokenizer.decode(scored[1]) == "a city ."
    batch = task.collate(tokenizer)(items)
    assert (batch["labels"] != -100).sum() == 5
    network = small_language_model()
    with torch.no_grad():
        outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        own = network(**batch).loss
    torch.testing.assert_close(nll(outputs.logits[None], batch["labels"], likelihood="tokens"), own)
    with pytest.raises(bella.BellaError, match=r"Row 1 .* within its first 4 tokens"):
        task.tokenise(records, Asked(tokenizer, asks.columns, max_length=4))


def test_a_language_model_from_chats(writer, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, chats())))
    config = asked(task="causal-lm", data=str(path), network=writer, epochs=4, learning_rate=0.05)
    found = train_text(config, tmp_path / "run", progress=False)
    assert found["perplexity"] == pytest.approx(torch.tensor(found["nll"]).exp().item())
    run = open_run(tmp_path / "run")
    rows = run.predict(path).rows()
    assert {row["tokens"] for row in rows} == {2, 4}
    every = run.evaluate(path)
    total = sum(row["nll"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
    assert every["nll"] == pytest.approx(total, abs=1e-5)
    plain = bella.evaluate(run.posterior, run.loader(run.tokenised(_records(path), labelled=True)))
    for name in ("nll", "accuracy", "entropy", "mutual_information", "ece", "auroc_errors_entropy"):
        assert every[name] == pytest.approx(plain[name], abs=1e-6), name


def _records(path):
    from bella.data.records import read_records

    return read_records(path)["train"]


def test_figures_of_tokens_against_other_data(writer, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, chats(8))))
    task, tokenizer = TASKS["causal-lm"], small_tokenizer()
    records = _records(path)
    data = task.tokenise(records, Asked(tokenizer, task.columns(records, {})))
    loader = torch.utils.data.DataLoader(data, 3, collate_fn=task.collate(tokenizer))
    posterior = bella.low_rank(small_language_model(), 2, 2, ("q_proj", "up_proj"), b_std=0.3)
    found = evaluate_tokens(posterior, loader, loader)
    assert found["auroc_ood_entropy"] == pytest.approx(0.5)
    assert found["auroc_ood_mi"] == pytest.approx(0.5)
    assert found["nll_ood"] == pytest.approx(found["nll"])


# ------------------------------------------------------------ multiple choice


LAST = r"language\.model\.layers\.2\.(self_attn\.q_proj|mlp\.up_proj)"


def questions(count=24):
    cities = ("Paris", "Rome", "Madrid", "Oslo")
    found = []
    for i in range(count):
        country = ("France", "Italy", "Spain", "Norway")[i % 4]
        found.append(
            {
                "question": f"what is the capital of {country} ?",
                "choices": list(cities[:3]) if i % 4 < 3 else ["Oslo", "Rome", "Paris"],
                "answer": cities[i % 4],
            }
        )
    return found


@pytest.mark.parametrize("cell", ["{", "[" * 100_000])
def test_messages_that_are_no_json_are_named(cell):
    with pytest.raises(bella.BellaError, match="Row 7 has messages that are no JSON"):
        messages_of(cell, "Row 7")


@pytest.mark.parametrize("options_by", ["mean", "sum", "letter"])
def test_multiple_choice(options_by, writer, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, questions())))
    config = asked(
        task="multiple-choice",
        data=str(path),
        network=writer,
        options_by=options_by,
        target_modules=[LAST],
    )
    found = train_text(config, tmp_path / "run", progress=False)
    assert 0 <= found["accuracy"] <= 1
    run = open_run(tmp_path / "run")
    rows = run.predict(path).rows()
    assert {row["class"] for row in rows} <= {"A", "B", "C"}
    if options_by == "letter":
        return
    # Against the language model by hand: the text of each option behind the question.
    row, tokenizer = rows[1], run.asked.tokenizer
    probs = 0
    for i in range(2):
        language = run.posterior.particle(i).language.eval()
        scores = []
        for option in row["choices"]:
            before = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
            after = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = language(torch.tensor([before + after])).logits[0].log_softmax(-1)
            each = [logits[len(before) - 1 + k, t] for k, t in enumerate(after)]
            scores.append(sum(each) / (len(each) if options_by == "mean" else 1))
        probs = probs + torch.stack(scores).softmax(0) / 2
    assert [row[f"p({c})"] for c in "ABC"] == pytest.approx(probs.tolist(), abs=2e-5)


@pytest.mark.parametrize(("answer", "place"), [("Rome", 1), ("b", 1), ("C", 2), (0, 0), ("2", 2)])
def test_an_answer_is_a_text_a_letter_or_a_number(answer, place):
    from bella.runs.texts.choice import answer_of

    assert answer_of(answer, ("Paris", "Rome", "Oslo"), "Row 1") == place


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": "Berlin"}, "no option's text, letter or number"),
        ({"choices": ["Paris", "Rome"]}, "2 options and the first question 3"),
        ({"choices": "Paris, Rome"}, "a list of texts"),
        ({"choices": "[" * 100_000}, "a list of texts"),
    ],
)
def test_questions_that_cannot_be_asked_are_named(row, words, writer, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = questions()
    rows[5] |= row
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(bella.BellaError, match=f"Row 6 .*{words}"):
        train_text(
            asked(task="multiple-choice", data=str(path), network=writer, target_modules=[LAST]),
            tmp_path / "run",
            progress=False,
        )


def test_options_may_be_columns(writer, tmp_path):
    rows = [
        {"stem": q["question"], "a": "Paris", "b": "Rome", "c": "Oslo", "key": "ABC"[i % 3]}
        for i, q in enumerate(questions())
    ]
    data = write_csv(tmp_path / "questions.csv", rows)
    columns = {"options": "a,b,c", "answer": "key"}
    config = asked(
        task="multiple-choice",
        data=str(data),
        network=writer,
        columns=columns,
        target_modules=[LAST],
    )
    assert 0 <= train_text(config, tmp_path / "run", progress=False)["accuracy"] <= 1
    assert open_run(tmp_path / "run").evaluate(data)["nll"] > 0
