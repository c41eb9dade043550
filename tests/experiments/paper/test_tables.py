"""The paper's tables, on a small task and by their known answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paper_cases import small_setup, small_task
from torch import nn

import bella
from bella import metrics
from bella.evaluation.similarity import weight_similarities, weight_similarity
from bella.experiments.paper import TABLES
from bella.experiments.paper.item import Setup
from bella.experiments.paper.tables import (
    corruptions,
    cost,
    domains,
    hyperparameters,
    layers,
    repulsion,
    similarity,
    soups,
)
from bella.experiments.tasks.shifts import with_corruptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def rows_of(product):
    """Rows as mappings from a column's name."""
    names = [column.name for column in product.sheet.columns]
    return [dict(zip(names, row, strict=True)) for row in product.sheet.rows]


def test_the_paper_s_counts_come_out_to_the_digit(folder):
    setup = Setup(tasks=[], methods=[], folder=folder)
    rows = rows_of(cost.make(setup, measure=(), measure_copies=()))
    found = {(row["what"], row["particles"]): row["trainable parameters"] for row in rows}
    wanted = {3: 1_105_920, 5: 1_843_200, 20: 7_372_800, 100: 36_864_000}
    assert {n: found["low-rank particles", n] for n in wanted} == wanted
    one = found["whole copies", 1]
    # 12 blocks, embeddings, norms, the projection to 512 and a head of ten.
    block = 4 * (768 * 768 + 768) + 2 * (768 * 3072) + 3072 + 768 + 4 * 768
    embeddings = 768 + 50 * 768 + 3 * 32 * 32 * 768
    assert one == 12 * block + embeddings + 4 * 768 + 768 * 512 + 5130
    assert found["whole copies", 40] == 40 * one
    bytes_of = {(row["what"], row["particles"]): row["tensors"] for row in rows}
    assert bytes_of["low-rank particles", 100] == 4 * 36_864_000
    assert bytes_of["whole copies", 3] == 3 * (4 * one + 8 * 50)  # with the numbers of positions


def test_what_is_trained_is_measured_and_its_file_written(folder):
    setup = small_setup(folder, [])
    product = cost.make(
        setup, particles=(1, 2), copies=(1,), measure=(2,), measure_copies=(1,), batch=2
    )
    copies, one, two = rows_of(product)
    network = small_task().open(0).network
    assert copies["trainable parameters"] == sum(p.numel() for p in network.parameters())
    assert one["trainable parameters"] == 8 * 2 * (6 + 8) + 14  # rank 2, eight layers, a head
    assert two["trainable parameters"] == 2 * one["trainable parameters"]
    assert one["file"] is None
    assert two["tensors"] < two["file"] < two["tensors"] + 10_000  # names and settings
    assert copies["memory of a step"] is not None


def test_shifted_accuracies_are_those_of_the_particles_together(folder):
    setup = small_setup(folder, ["probe-ensemble", "probe"], seeds=2)
    product = domains.make(setup)
    first = rows_of(product)[0]
    predictive, labels = setup.compare().said("probe-ensemble", 1)["far"]
    right = (predictive.logits.mean(0).argmax(-1) == labels).double().mean()
    assert first["far"][1] == pytest.approx(100 * float(right))
    assert first["average"] == pytest.approx(
        [(a + b) / 2 for a, b in zip(first["test"], first["far"], strict=True)]
    )
    without = replace(small_task(), shifts={})
    with pytest.raises(bella.BellaError, match="no shifted part with labels"):
        domains.make(replace(setup, tasks=[without]))


def test_corruptions_are_the_mean_over_severities(folder):
    setup = small_setup(folder, ["probe"])
    (row,) = rows_of(corruptions.make(setup, kinds=("brightness", "contrast"), severities=(1, 4)))
    spoilt = with_corruptions(setup.task, ["brightness"], (1, 4), side=96)
    compared = setup.compare(spoilt)
    single = [compared.figures("probe", f"brightness-{s}")["accuracy"][0] for s in (1, 4)]
    assert row["brightness"][0] == pytest.approx(50 * sum(single))
    assert row["average"][0] == pytest.approx((row["brightness"][0] + row["contrast"][0]) / 2)


def test_layers_are_chosen_by_role_and_by_depth(folder):
    names = [f"blocks.{i}.mlp.{fc}" for i in range(4) for fc in ("fc1", "fc2")]
    groups = layers.choices(names)
    assert list(groups) == ["all", "fc1 alone", "fc2 alone", "first half", "last half"]
    assert groups["fc1 alone"] == [f"blocks.{i}.mlp.fc1" for i in range(4)]
    assert groups["last half"] == names[4:]
    twice = layers.choices(["blocks.0.fc1", "head"])
    assert twice == {"all": ["blocks.0.fc1", "head"], "fc1 alone": ["blocks.0.fc1"]} | {
        "head alone": ["head"]
    }
    product = layers.make(small_setup(folder, ["lora"]))
    trainable = {row["layers that change"]: row["trainable parameters"] for row in rows_of(product)}
    assert trainable["all"] == 8 * 2 * 14 + 14
    assert set(trainable.values()) == {8 * 2 * 14 + 14, 4 * 2 * 14 + 14}
    other = layers.adapting(small_task(), ["blocks.3.fc1"])
    assert other.open(0).defaults.target_modules == ("blocks.3.fc1",)
    with pytest.raises(bella.BellaError, match="adapts no layers"):
        layers.make(small_setup(folder, ["probe"]))


def test_a_soup_is_the_network_of_the_mean_weights(folder):
    names = ["lora-ensemble-soup", "ensemble-soup", "lora-ensemble"]
    setup = small_setup(folder, names)
    product = soups.make(setup)
    compared = setup.compare()
    test = torch.stack([x for x, _ in compared.task.part("test", 0)])
    for soup, of in (("lora-ensemble-soup", "lora-ensemble"), ("ensemble-soup", "ensemble")):
        everyone = setup.compare(methods=[of])
        mean = everyone.posterior(of).soup()
        with torch.no_grad():
            said = mean(test)
        assert torch.allclose(compared.said(soup)["test"][0].logits[0], said, atol=1e-4)
    row = rows_of(product)[0]
    predictive, labels = compared.said("lora-ensemble-soup")["test"]
    wrong = predictive.predictions != labels
    entropy = metrics.entropy(predictive.probs)
    assert row["PE wrong"][0] == pytest.approx(float(entropy[wrong].mean()))
    assert row["PE right"][0] == pytest.approx(float(entropy[~wrong].mean()))


def test_no_repulsion_is_the_ensemble_and_no_budget_no_attack(folder):
    setup = small_setup(folder, [])
    product = repulsion.make(setup, gammas=(0.0,), budgets=(0.0, 0.5), rank=1)
    none, recipe = rows_of(product)
    assert none["budget 0"] == none["clean"]
    assert none["budget 0.5"] < none["clean"]
    assert (none["T"], recipe["T"]) == (0, 1000)
    assert recipe["γ"] == "125"  # T n / N with N = 40
    with pytest.raises(bella.BellaError, match="budget=-1"):
        repulsion.make(setup, budgets=(-1,))


def test_similarity_is_that_of_the_changes_whatever_their_gauge():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    posterior = bella.low_rank(network, 3, 2, ("0", "2"))
    changes = []
    with torch.no_grad():
        for layer in posterior.layers().values():
            B = torch.randn(3, layer.B.shape[1], 2)
            gauge = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
            A = torch.randn(3, 2, layer.A.shape[2])
            B[1], A[1] = B[0] @ gauge, -torch.linalg.inv(gauge) @ A[0]  # Δ_1 = -Δ_0
            layer.A.copy_(A)
            layer.B.copy_(B)
            changes.append((B @ A).flatten(1))
    dense = torch.cat(changes, 1)
    wanted = torch.nn.functional.cosine_similarity(dense[:, None], dense[None], dim=-1)
    found = weight_similarities(posterior)
    assert torch.allclose(found.float(), wanted, atol=1e-5)
    assert found[0, 1] == pytest.approx(-1)
    pairs = (wanted.sum() - 3) / 6
    assert weight_similarity(posterior) == pytest.approx(float(pairs), abs=1e-5)


def test_the_table_of_similarities_has_a_line_a_particle(folder):
    product = similarity.make(small_setup(folder, ["lora-ensemble"]))
    rows = rows_of(product)
    assert [row["particle"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [rows[i][f"{i}"] for i in range(5)] == pytest.approx([1.0] * 5)
    assert rows[1]["3"] == pytest.approx(rows[3]["1"])
    with pytest.raises(bella.BellaError, match="one particle"):
        similarity.make(small_setup(folder, ["lora"]))


def test_settings_are_those_that_a_row_is_trained_with(folder):
    setup = small_setup(folder, ["svgd-bella", "single", "probe"], settings={"epochs": 3})
    product = hyperparameters.make(setup)
    found = {row["setting"]: list(row.values())[2:] for row in rows_of(product)}
    assert found["epochs"] == ["3", "3"]
    assert found["rank"] == ["2", "-"]
    assert found["γ"] == ["0.01", "-"]
    assert found["T"] == ["0.08", "-"]  # γ N / n with N = 40
    assert found["learning rate"] == ["0.02", "3e-05"]


def test_every_table_names_rows_that_there_are():
    for item in TABLES.values():
        assert item.title
        assert item.cost
