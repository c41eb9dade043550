"""The WordNet task on a small network and small files."""

from __future__ import annotations

import pytest
import torch
from language_cases import stand_in

import bella
from bella.console import progress_bar
from bella.experiments.bench import Bench
from bella.experiments.compare import compare
from bella.experiments.methods import METHODS, usual_methods
from bella.experiments.tasks import wordnet_choice

pytestmark = pytest.mark.long


@pytest.fixture
def files(tmp_path, monkeypatch):
    """WordNet's form with a category a file; and a small network that knows the words."""
    for kind, category, count in (("noun", 5, 60), ("verb", 38, 12), ("adj", 0, 12)):
        lines = []
        for i in range(count):
            gloss = f"a red thing of size {i % 7} and of colour {i % 11} ; number {i}"
            lines.append(
                f"{i:08d} {category:02d} n 01 thing{i} 0 001 @ 00001740 n 0000 | {gloss}\n"
            )
        (tmp_path / f"data.{kind}").write_text("".join(lines))
    (tmp_path / "data.adv").write_text("")
    words = " ".join(f"thing{i} {i}" for i in range(60))
    page = f"{words} Definition: a red thing of size and colour ; number Word:"
    (tmp_path / "network").mkdir()
    stand_in(
        wordnet_choice.NETWORK,
        page,
        monkeypatch,
        tmp_path / "network",
        r"model\.layers\.2\.mlp\.up_proj",
    )
    return tmp_path


@pytest.mark.parametrize("more", [[], pytest.param(["vbl"], marks=pytest.mark.slow)])
def test_the_task_is_compared_as_any_other(files, more):
    task = wordnet_choice.wordnet_choice_task(files, nouns=16, tested=10, shifted=8)
    parts = task.split(0)
    assert list(parts) == ["train", "validation", "test", "verb", "adjective"]
    assert len(parts["verb"][1]) == len(parts["adjective"][1]) == 8
    own = [row for part in ("train", "validation") for row in parts[part][1]]
    assert sorted(own) == list(range(len(task.pools["noun"])))
    assert 14 <= len(own) <= 18  # as near as equal shares of each place come
    assert len(parts["train"][1]) > len(parts["test"][1]) > len(parts["validation"][1])
    assert task.split(0) == parts != task.split(1)
    assert parts["test"] == task.split(1)["test"]  # so that nothing is chosen on a test question
    assert not set(task.pools["noun"].questions) & set(task.pools["test"].questions)
    names = ["untrained", "lora", "repulsive", "soup", *more]
    results = compare(
        task, names, seeds=1, folder=files / "out", progress=False, learning_rate=0.01
    )
    methods = results["methods"]
    assert set(names) <= set(methods)
    for method in methods.values():
        assert set(method["parts"]) == {"validation", "shift", "adjective"}
        for figures in (method["figures"], method["parts"]["shift"], method["parts"]["adjective"]):
            assert 0 <= figures["accuracy"]["mean"] <= 1
        assert "auroc_entropy" in method["parts"]["adjective"]
    for row in ("bella", "lora-ensemble+distance"):
        with pytest.raises(bella.BellaError, match="leave out the rows with anchors or a distance"):
            compare(task, [row], seeds=1, folder=files / "none", progress=False, epochs=1)
    assert "untrained" in usual_methods(task)
    assert methods["untrained"]["costs"]["trainable"]["mean"] == 0
    assert methods["repulsive"]["figures"]["mutual_information"]["mean"] > 0


def test_the_base_model_s_row_is_what_it_says_without_particles(files, tmp_path):
    task = wordnet_choice.wordnet_choice_task(files, nouns=16, tested=10, shifted=8)
    with progress_bar(False) as bar:
        outputs, _ = METHODS["untrained"].run(Bench(task, tmp_path, {}, bar), 0, tmp_path)
    network = task.open(0).network
    pool, rows = task.split(0)["test"]
    predictive, labels = outputs["test"]
    for place, row in enumerate(rows):
        inputs, label = task.pools[pool][row]
        with torch.no_grad():
            truth = network(**{name: x[None] for name, x in inputs.items()})
        torch.testing.assert_close(predictive.logits[0, place], truth[0], atol=1e-5, rtol=1e-4)
        assert labels[place] == label
