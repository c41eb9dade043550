"""The tasks on sets of texts, on a small network and small files."""

from __future__ import annotations

import pytest
from language_cases import small_reader
from set_files import write_reviews, write_wordnet

import bella
from bella.experiments.compare import compare
from bella.experiments.tasks import task_named, text_task
from bella.experiments.tasks.wordnet import wordnet_task
from bella.models import language


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A small network behind MiniLM's name."""
    words = ["a", "red", "blue", "noun", "verb", "adj", "adv", "of", "size", ";", "number", "rated"]
    (tmp_path / "network").mkdir()
    small_reader(tmp_path / "network", [*words, *map(str, range(60))])
    targets = (r".*layer\.1\..*query",)
    place = tmp_path / "network"
    monkeypatch.setitem(language.LANGUAGE, "minilm-l6", (lambda: place, targets))


def test_definitions_are_compared_by_every_row_of_the_recipe(reader, tmp_path):
    write_wordnet(tmp_path)
    task = task_named("wordnet", tmp_path)
    parts = task.split(0)
    assert list(parts) == ["train", "validation", "test", "verb", "adjective", "adverb"]
    assert parts["test"] == task.split(1)["test"]
    assert parts["train"] != task.split(1)["train"]
    assert not set(task.pools["noun"].texts) & set(task.pools["test"].texts)
    assert task.classes == ("animal", "food")
    rows = ["probe", "lora", "anchors", "lora-ensemble+distance", "multi-depth", "bella"]
    results = compare(
        task, rows, seeds=1, folder=tmp_path / "out", progress=False, epochs=1, learning_rate=0.01
    )
    methods = results["methods"]
    assert set(rows) <= set(methods)
    for method in methods.values():
        assert {"verb", "adjective", "adverb"} <= set(method["parts"])
        assert "accuracy" not in method["parts"]["verb"]  # verbs are of no class
    assert methods["bella"]["parts"]["verb"]["auroc_novelty"]["mean"] is not None
    seen = methods["bella"]["costs"]["ms_predicting"]["mean"]
    assert seen > methods["lora"]["costs"]["ms_predicting"]["mean"] > 0


def test_a_smaller_draw_keeps_fewer_tokens_and_changes_what_is_said(reader, tmp_path):
    write_wordnet(tmp_path)
    targets = (r"bert\.encoder\.layer\.0\.attention\.self\.value",)
    counts = {"train": 8, "validation": 4}
    task = wordnet_task(tmp_path, counts=counts, longest=5, target_modules=targets)
    drawn = task.split(0)
    assert {part: len(drawn[part][1]) for part in counts} == counts
    inputs, _ = task.part("train", 0)[0]
    assert inputs["input_ids"].shape == (5,)
    opened = task.open(0)
    assert opened.defaults.target_modules == targets
    usual = task_named("wordnet", tmp_path).open(0)
    assert opened.defaults.modules_to_save == usual.defaults.modules_to_save


@pytest.mark.filterwarnings("ignore:.*the published")
def test_reviews_of_one_condition_are_a_shift_with_right_answers(reader, tmp_path):
    write_reviews(tmp_path)
    task = task_named("drug-reviews", tmp_path)
    parts = task.split(0)
    assert list(parts) == ["train", "validation", "test", "birth-control"]
    assert len(parts["train"][1]) == 4 * len(parts["validation"][1]) == 64
    assert parts["train"] != task.split(1)["train"]
    assert set(task.part("birth-control", 0).labels) == {0, 1}


@pytest.mark.filterwarnings("ignore:.*the published")
def test_rows_of_any_set_are_a_task(reader, tmp_path):
    write_reviews(tmp_path / "uci")
    task = text_task(
        {"task": "text", "data": "drug-reviews", "folder": str(tmp_path / "uci"), "limit": 30}
    )
    assert task.shifts == {"birth-control": "birth-control"}
    assert task.words.unscored == ()
    assert len(task.part("train", 0)) == 30
    (inputs, label), text = task.part("train", 0)[0], task.part("train", 0).texts[0]
    assert inputs["input_ids"].shape == task.part("test", 0)[0][0]["input_ids"].shape
    assert label in (0, 1, 2)
    assert isinstance(text, str)
    with pytest.raises(bella.BellaError, match="limit is for a data set by name"):
        text_task({"task": "text", "data": str(tmp_path / "rows.csv"), "limit": 3})
