"""The paper's figures, on a small task and by their known answers."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter

import pytest
import torch
from paper_cases import small_setup, small_task
from PIL import Image

import bella
from bella import metrics
from bella.errors import BellaError
from bella.evaluation.evaluate import collect
from bella.experiments.paper import FIGURES
from bella.experiments.paper.figures import (
    attacks,
    cases,
    diversity,
    human_confidence,
    information,
    landscapes,
    laplace,
    open_cases,
    other_images,
    parameters,
    rank_and_particles,
    short_cases,
    soups,
    under_corruptions,
    vqa_information,
)
from bella.experiments.paper.figures.common import (
    Doubts,
    density_figure,
    finding,
    images_of,
    summary,
)
from bella.experiments.paper.item import Setup
from bella.experiments.paper.running import Asked, setup_of
from bella.prediction.mixture import Mixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(autouse=True)
def closed():
    """Figures that no file is written of are closed."""
    yield
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.close("all")


def rows_of(sheet):
    names = [column.name for column in sheet.columns]
    return [dict(zip(names, row, strict=True)) for row in sheet.rows]


# ---------------------------------------------------------------- from trained rows


def test_the_landscape_at_a_particle_is_the_particle(folder):
    setup = small_setup(folder, ["svgd-bella"])
    product = landscapes.make(setup, columns=3)
    rows = rows_of(product.sheet)
    posterior = setup.compare().posterior("svgd-bella")
    for part in ("train", "test", "far"):
        said, labels = collect(posterior, setup.task.part(part, 0))
        wrong = (said.particle_probs.argmax(-1) != labels).double().mean(1)
        for i in range(3):
            assert rows[i][f"error on {part}"] == pytest.approx(100 * float(wrong[i]))
        three = (said.logits[:3].mean(0).argmax(-1) != labels).double().mean()
        assert rows[4][f"error on {part}"] == pytest.approx(100 * float(three))
    grid = product.more["grid"]
    assert len(grid.rows) % 3 == 0
    assert all(0 <= row[2] <= 1 for row in grid.rows)
    with pytest.raises(BellaError, match="through three"):
        landscapes.make(small_setup(folder, ["lora"]), columns=3)
    with pytest.raises(BellaError, match="choose train"):
        landscapes.make(setup, part="nowhere")


def test_medians_are_of_right_and_of_wrong_answers(folder):
    setup = small_setup(folder, ["svgd-bella", "lora-ensemble"])
    product = information.make(setup, corruption="contrast")
    rows = rows_of(product.sheet)
    assert [row["on"] for row in rows[::2]] == ["squares, far", "squares, contrast 5"]
    predictive, labels = setup.compare().said("svgd-bella")["far"]
    wrong = predictive.predictions != labels
    assert rows[0]["wrong"] == [float(wrong.sum())]
    values = sorted(predictive.mutual_information[wrong].tolist())
    known = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    assert rows[0]["median mutual information if wrong"] == [pytest.approx(known)]
    assert len(product.more["values"].rows) == 2 * (20 + 30)


def test_each_corruption_is_a_panel(folder):
    setup = small_setup(folder, ["svgd-bella", "lora-ensemble"])
    product = under_corruptions.make(setup, kinds=("brightness", "contrast"), severity=3)
    assert [row["on"] for row in rows_of(product.sheet)[::2]] == ["brightness", "contrast"]
    assert len(product.pictures[0].figure.axes) == 2
    with pytest.raises(BellaError, match="unknown"):
        under_corruptions.make(setup, kinds=("rain",))


def test_a_row_with_a_mixture_is_attacked_as_a_whole(folder, tmp_path):
    setup = small_setup(folder, ["lora"])
    kept = setup.compare()
    own = shutil.copytree(kept.folder, tmp_path / "kept")
    compared = dataclasses.replace(kept, folder=own, average="probs")
    assert not isinstance(compared.predicts("lora"), Mixture)
    train, validation = (images_of(setup.task, part, 0, 20) for part in ("train", "validation"))
    mixture = bella.mixture(compared.posterior("lora"), train, validation, anchors=None)
    mixture.save_beside(compared.folder / "runs" / "lora-0" / "posterior")
    predicts = compared.predicts("lora")
    assert isinstance(predicts, Mixture)
    said, labels = collect(predicts, images_of(setup.task, "test", 0, 10))
    right = metrics.accuracy(said.probs, labels)
    assert attacks.accuracy_under(compared, "lora", 0, 0.0, 10, "fgsm") == pytest.approx(right)


def test_without_a_budget_an_attack_changes_nothing(folder):
    setup = small_setup(folder, ["lora", "svgd-bella"])
    product = attacks.make(setup, budgets=(0.0, 0.3), images=10)
    compared = setup.compare()
    images = images_of(setup.task, "test", 0, 10)
    assert Counter(images.labels) == {0: 5, 1: 5}
    for name, row in zip(compared.titles, rows_of(product.sheet), strict=True):
        said, labels = collect(compared.posterior(name), images, average="logits")
        right = 100 * metrics.accuracy(said.probs, labels)
        assert row["ε = 0"] == [pytest.approx(right)]
        assert row["ε = 0.3"][0] <= row["ε = 0"][0]
    with pytest.raises(BellaError, match="budget"):
        attacks.make(setup, budgets=(-1.0,))


def test_rank_and_particles_count_what_they_should(folder):
    setup = small_setup(folder, ["svgd-bella"], seeds=2)
    product = rank_and_particles.make(setup, ranks=(1, 3), particles=(1, 2))
    found = {(row["varied"], row["value"]): row for row in rows_of(product.sheet)}
    head = 14
    for rank in (1, 3):
        one = 8 * rank * (6 + 8) + head
        assert found["rank", f"{rank}"]["trainable parameters"] == 5 * one
    for number in (1, 2):
        one = 8 * 2 * (6 + 8) + head
        assert found["particles", f"{number}"]["trainable parameters"] == number * one
    assert found["particles", "1"]["diversity"] == [0.0, 0.0]
    assert len(product.notes) == 3
    with pytest.raises(BellaError, match="choose one"):
        rank_and_particles.make(small_setup(folder, ["probe"]))
    with pytest.raises(BellaError, match="at least 1"):
        rank_and_particles.make(setup, ranks=(0,))


def test_whole_copies_end_the_line(folder):
    setup = small_setup(folder, ["svgd-bella", "svgd"])
    rows = rows_of(parameters.make(setup, ranks=(1, 2)).sheet)
    whole = sum(p.numel() for p in small_task().open(0).network.parameters())
    assert [row["trainable parameters"] for row in rows] == [
        5 * (8 * 14 + 14),
        5 * (16 * 14 + 14),
        5 * whole,
    ]
    with pytest.raises(BellaError, match="one row of low-rank"):
        parameters.make(small_setup(folder, ["svgd"]))


def test_diversity_is_the_mean_of_what_is_drawn(folder):
    setup = small_setup(folder, ["svgd-bella", "lora-ensemble"])
    product = diversity.make(setup)
    for name, row in zip(setup.compare().titles, rows_of(product.sheet), strict=True):
        said = setup.compare().said(name)["test"][0]
        assert float(diversity.apart(said).mean()) == pytest.approx(row["diversity"][0], rel=1e-5)
    assert len(product.more["values"].rows) == 2 * 30
    assert "Here" in product.notes[0]


def test_other_images_are_those_with_right_answers(folder):
    setup = small_setup(folder, ["lora", "svgd-bella"])
    row = rows_of(other_images.make(setup).sheet)[1]
    predictive, labels = setup.compare().said("svgd-bella")["far"]
    right = (predictive.predictions == labels).double().mean()
    assert row["accuracy on far"] == [pytest.approx(100 * float(right))]
    assert row["in the paper"] == "SVGD Bella"


def test_soups_and_laplace_are_told_by_their_entropy(folder):
    setup = small_setup(folder, ["lora-ensemble-soup", "svgd-bella-soup"])
    product = soups.make(setup)
    predictive, labels = setup.compare().said("svgd-bella-soup")["test"]
    row = rows_of(product.sheet)[1]
    known = metrics.auroc_errors(predictive.probs, labels, predictive.entropy)
    assert row["tells errors"] == [pytest.approx(known, nan_ok=True)]
    beside = laplace.make(small_setup(folder, ["svgd-bella", "vbl"]))
    assert [row["system"] for row in rows_of(beside.sheet)] == [
        "SVGD Bella (γ=0.01)",
        "VBL (Laplace-LoRA)",
    ]


def test_without_a_density_nothing_is_drawn():
    same = Doubts("here", "a", torch.zeros(9), torch.zeros(9, dtype=torch.bool))
    with pytest.raises(BellaError, match="no mutual information to draw"):
        density_figure([same], "mutual information")
    told = Doubts("there", "a", torch.linspace(0.1, 1, 9), torch.ones(9, dtype=torch.bool))
    assert len(density_figure([same, told], "entropy").axes) == 1


def test_the_paper_s_two_systems_are_set_side_by_side():
    assert cases.two_of(["a", "lora", "lora-ensemble", "repulsive"]) == [
        "lora-ensemble",
        "repulsive",
    ]
    assert cases.two_of(["a", "b", "repulsive"]) == ["a", "b"]


def test_a_finding_says_whether_it_held():
    assert "It held here (by one seed" in finding("a", "b", True)
    assert "did not hold here (by the means of 3 seeds" in finding("a", "b", False, 3)
    assert finding("a", "b", None).endswith("Nothing can be said of it here.")


def test_where_nothing_is_wrong_nothing_is_told():
    fine = Doubts("here", "a", torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.bool))
    (row,) = rows_of(summary([fine], "entropy"))
    assert math.isnan(row["tells errors"][0])
    assert math.isnan(row["median entropy if wrong"][0])


# ---------------------------------------------------------------- from answers to questions


def answer(number, system, kind="yes/no", **other):
    """Question ``number``: people agree the less, the larger it is."""
    agree = 10 - number
    people = ["yes"] * agree + ["no"] * number
    right = number % 2 == 0
    return {
        "image": f"{number}.png",
        "question": f"question {number}?",
        "type": kind,
        "people": people,
        "answer": "yes" if right or system == "one" else "no",
        "entropy": 0.1 * number + 0.05,
        "mutual_information": 0.01 * (number + 1) * (2 if system == "two" else 1),
        "exact_match": right,
        "human_confidence": agree / 10,
        **other,
    }


@pytest.fixture
def answers(tmp_path):
    for system in ("one", "two"):
        place = tmp_path / "compared" / system / "seed-0"
        place.mkdir(parents=True)
        rows = [answer(number, system) for number in range(5)]
        rows += [answer(number, system, kind="other") for number in range(5)]
        for row in rows:
            path = tmp_path / row["image"]
            Image.new("RGB", (20, 20), "red").save(path)
            row["image"] = str(path)
        (place / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "compared"


NOTHING = Setup(tasks=[], methods=[], folder=None)


def test_people_are_surer_below_every_threshold(answers):
    product = human_confidence.make(NOTHING, answers=str(answers), thresholds=(0.1, 0.3))
    row = rows_of(product.sheet)[1]
    # Entropies are .05 to .45, confidences 1 to .6.
    assert row["confidence, low entropy"] == pytest.approx(100 * (1 + 0.9 + 0.8) / 3)
    assert row["confidence, high entropy"] == pytest.approx(100 * (0.7 + 0.6) / 2)
    assert (row["answers, low"], row["answers, high"]) == (3, 2)
    assert "rank correlation is -1.00" in product.notes[0]
    assert "It held here" in product.notes[0]


def test_images_that_nobody_doubted_have_no_people(folder):
    with pytest.raises(BellaError, match="how sure people were"):
        human_confidence.make(small_setup(folder, ["lora"]))


def test_answers_stand_for_data():
    item = FIGURES["6"]
    asked = {"comparisons": None, "options": {"answers": "x"}}
    assert setup_of(item, Asked(**asked)).tasks == []
    with pytest.raises(BellaError, match="stands for data"):
        setup_of(item, Asked(**asked, tasks=[small_task()]))


def test_disputes_are_told_by_type_of_question(answers):
    with pytest.raises(BellaError, match="fewer than 5"):
        vqa_information.make(NOTHING, answers=str(answers))
    for path in answers.glob("*/seed-0/answers.jsonl"):
        path.write_text("\n".join([path.read_text()] * 3))
    product = vqa_information.make(NOTHING, answers=str(answers))
    rows = rows_of(product.sheet)
    assert [(row["on"], row["system"]) for row in rows] == [
        ("yes/no", "one"),
        ("yes/no", "two"),
        ("other", "one"),
        ("other", "two"),
    ]
    assert rows[0]["median mutual information if wrong"] == [pytest.approx(0.03)]  # of .02, .04
    assert rows[1]["median mutual information if right"] == [pytest.approx(0.06)]


def test_one_network_disputes_nothing_and_is_not_drawn(answers):
    for path in answers.glob("*/seed-0/answers.jsonl"):
        path.write_text("\n".join([path.read_text()] * 3))
    path = answers / "one" / "seed-0" / "answers.jsonl"
    alone = [
        json.loads(line) | {"mutual_information": 0.0} for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(map(json.dumps, alone)))
    product = vqa_information.make(NOTHING, answers=str(answers))
    assert {row["system"] for row in rows_of(product.sheet)} == {"two"}
    assert product.notes == ["Not drawn, because one network disputes nothing: one."]
    with pytest.raises(BellaError, match="disputes nothing"):
        vqa_information.make(NOTHING, answers=str(path))


def test_cases_are_chosen_by_dispute_and_not_by_who_is_right(answers):
    product = open_cases.make(NOTHING, answers=str(answers), count=3)
    rows = rows_of(product.sheet)
    # They differ on 1 and 3; then comes the most disputed of the others.
    assert [row["question"] for row in rows] == ["question 3?", "question 1?", "question 4?"]
    assert rows[0]["one"] == "yes (0.350 / 0.0400)"
    assert rows[2]["two"] == "yes ✓ (0.450 / 0.1000)"
    assert rows[0]["people"] == "yes: 7/10, no: 3/10"
    assert len(short_cases.make(NOTHING, answers=str(answers), count=2).pictures) == 1


def test_answers_of_another_form_are_refused(answers, tmp_path):
    for wrong in ("", str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises((BellaError, OSError)):
            vqa_information.make(NOTHING, answers=wrong)
    path = tmp_path / "one.jsonl"
    path.write_text('{"question": "is it?"}\n')
    with pytest.raises(BellaError, match="Line 1"):
        vqa_information.make(NOTHING, answers=str(path))
    one = str(answers / "one" / "seed-0" / "answers.jsonl")
    with pytest.raises(BellaError, match="two systems"):
        cases.cases(13, one, ("other",), 4, "")
    with pytest.raises(BellaError, match="types"):
        cases.cases(13, {"a": one, "b": one}, ("number",), 4, "")
