"""What a table is made with: rows by the paper's names, averaged as the paper averages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paper_cases import small_setup, small_task

import bella
from bella.experiments.methods import METHODS
from bella.experiments.paper import TABLES
from bella.experiments.paper.item import Item, rows_named
from bella.experiments.paper.running import Asked, fitting, setup_of
from bella.experiments.predictions import read_outputs
from bella.experiments.tasks.smaller import smaller


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


def test_rows_of_particles_average_logits_and_pools_stay_as_they_are_pooled(folder):
    setup = small_setup(folder, ["lora-ensemble", "lora-ensemble+temperature"])
    compared = setup.compare()
    particles, labels = compared.said("lora-ensemble")["test"]
    mean = particles.logits.double().mean(0)
    assert torch.allclose(particles.probs.double(), mean.softmax(-1), atol=1e-6)
    accuracy = float((mean.argmax(-1) == labels).double().mean())
    assert compared.figures("lora-ensemble")["accuracy"][0] == pytest.approx(accuracy)
    pooled, _ = compared.said("lora-ensemble+temperature")["test"]
    kept, _ = read_outputs(compared.folder / "runs" / "lora-ensemble+temperature-0")["test"]
    assert torch.equal(pooled.probs, kept.probs)
    averaged = replace(setup, average="probs").compare()
    probs = averaged.said("lora-ensemble")["test"][0].probs
    assert torch.allclose(probs, particles.logits.softmax(-1).mean(0), atol=1e-6)
    assert not torch.allclose(probs, particles.probs, atol=1e-6)
    assert averaged.folder == compared.folder  # nothing was trained again


def test_the_paper_s_strength_of_the_repulsion_is_its_gamma(folder):
    (row,) = rows_named(["svgd-bella"])
    compared = small_setup(folder, ["svgd-bella"]).compare()
    move = bella.transport.repulsive(
        compared.posterior("svgd-bella"), data_size=40, **row.settings["transport_options"]
    )
    assert move.temperature == pytest.approx(0.01 * 40 / 5)


def test_a_row_changes_some_of_the_task_s_layers(folder):
    some = replace(METHODS["lora"], name="first", targets=(r"blocks\.[01]\.fc[12]",))
    compared = small_setup(folder, ["lora"]).compare(methods=[some])
    adapted = set(compared.posterior("first").layers())
    assert adapted == {f"blocks.{i}.{fc}" for i in (0, 1) for fc in ("fc1", "fc2")} | {"head"}
    other = replace(METHODS["lora"], name="other", targets=("embed",))
    with pytest.raises(bella.BellaError, match="not all among the 8 layers"):
        small_setup(folder, []).compare(methods=[other])


def test_a_row_without_a_posterior_says_so(folder):
    compared = small_setup(folder, ["probe"]).compare()
    with pytest.raises(bella.BellaError, match="keeps no posterior"):
        compared.posterior("probe")


def test_a_smaller_task_keeps_shares_of_classes_and_no_example_beside():
    task = small_task()
    less = smaller(task, 1, train=10, others=6)
    split = less.split(0)
    assert {part: len(rows) for part, (_, rows) in split.items()} == {
        "train": 10,
        "validation": 6,
        "test": 6,
        "far": 6,
    }
    for part in split:
        chosen = less.part(part, 0)
        assert sum(chosen.labels) == len(chosen) / 2
        whole = {pixels.tobytes() for pixels in task.part(part, 0).images}
        assert {pixels.tobytes() for pixels in chosen.images} <= whole
    assert {name: len(pool) for name, pool in less.pools.items()} == {
        "train": 10,
        "validation": 6,
        "test": 6,
        "far": 6,
    }
    assert smaller(task, 1) is task
    with pytest.raises(bella.BellaError, match="at least 1"):
        smaller(task, 1, train=0)


def test_what_an_item_does_not_have_is_refused(folder):
    def make(setup, *, particles=(1,)):
        raise AssertionError

    item = Item(make=make, title="nothing", cost="no time", takes_data=False)
    with pytest.raises(bella.BellaError, match="no option 'particle': its own are 'particles'"):
        setup_of(item, Asked(comparisons=folder, options={"particle": 1}))
    with pytest.raises(bella.BellaError, match="made without data"):
        setup_of(item, Asked(comparisons=folder, tasks=[small_task()]))
    with pytest.raises(bella.BellaError, match="has rows of its own"):
        setup_of(item, Asked(comparisons=folder, methods=["lora"]))
    with pytest.raises(bella.BellaError, match="trains no rows"):
        setup_of(TABLES["2"], Asked(comparisons=folder, settings={"epochs": 2}))
    with pytest.raises(bella.BellaError, match="seeds=0"):
        setup_of(TABLES["1"], Asked(comparisons=folder, tasks=[small_task()], seeds=0))
    with pytest.raises(bella.BellaError, match="near names are"):
        setup_of(TABLES["1"], Asked(comparisons=folder, tasks=[small_task()], methods=["bela"]))


def test_of_what_is_asked_of_all_each_takes_its_part(folder):
    asked = Asked(
        comparisons=folder,
        tasks=[small_task()],
        methods=["lora"],
        seeds=2,
        settings={"epochs": 1},
        options={"batch": 2, "gammas": [0.1]},
    )
    two = fitting(TABLES["2"], asked)
    assert (two.methods, two.seeds, two.settings, two.options) == (None, None, {}, {"batch": 2})
    assert two.tasks == asked.tasks  # counted on its network
    eight = fitting(TABLES["8"], asked)
    assert (eight.seeds, eight.settings, eight.options) == (2, {"epochs": 1}, {"gammas": [0.1]})
