"""A report on a user's own runs: their images asked again, and figures that are theirs."""

import shutil

import pytest
import torch
from language_cases import WORDS, small_reader
from own_images import write_images, write_network
from PIL import Image

from bella.errors import BellaError
from bella.files import read_json, read_sealed_json, write_sealed_json
from bella.report.html import chapter, page
from bella.runs import RunConfig, train
from bella.runs.material import Asked, run_materials
from bella.runs.texts import TextConfig, train_text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    write_images(root / "images")
    write_images(root / "strange images", count=4, seed=1)
    write_network(root / "network")
    for name, particles in (("run one", 3), ("two", 1)):
        train(
            RunConfig(
                data=str(root / "images"),
                network=f"hf:{root / 'network'}",
                particles=particles,
                epochs=2,
                rank=2,
                batch_size=8,
            ),
            root / name,
            progress=False,
        )
    return root


@pytest.fixture(scope="module")
def material(place):
    (found,) = run_materials([place / "run one"], Asked(ood=place / "strange images"))
    return found


def test_figures_are_those_of_the_training(place, material):
    then = read_json(place / "run one" / "figures.json")
    (method,) = material.results["methods"].values()
    for name in ("accuracy", "nll", "ece", "mutual_information"):
        assert method["figures"][name]["mean"] == pytest.approx(then[name], abs=1e-6)
    assert material.notes == []
    assert set(material.of_told("test")[1].tolist()) == {0, 1}


def test_foreign_images_are_a_shift_without_labels(material):
    assert material.results["shifts"] == ["ood"]
    assert material.called("ood") == "ood (strange images)"
    assert material.results["words"]["unscored"] == ["ood"]
    assert "accuracy" not in next(iter(material.results["methods"].values()))["parts"]["ood"]
    shown = chapter(material, "c")["galleries"][-1]
    assert shown.title == "The surest on ood (strange images)"
    assert all(example.label is None and example.right is None for example in shown.examples)


def test_the_page_says_how_to_go_on(place, material):
    text = page([material])
    assert f"bella predict &#39;{place / 'run one'}&#39; IMAGES" in text
    assert "day, night" in text
    assert "validation NLL, together" in text


def test_runs_on_the_same_images_stand_side_by_side(place):
    found = run_materials([place / "run one", place / "two"], Asked())
    (both,) = found
    assert list(both.results["methods"]) == ["run one", "two"]
    assert "may be chance" in both.notes[-1]
    other = place / "other"
    if not other.exists():
        write_images(other, count=5, seed=3)
    alone = run_materials([place / "two"], Asked(data=other))
    assert [m.results["parts"]["test"] for m in alone] == [10]
    assert "not" in alone[0].notes[0]


def test_curves_are_of_what_was_asked_for(place):
    (found,) = run_materials([place / "two"], Asked(corruptions=("fog",), attack="fgsm"))
    predictive, labels = found.of_told("test")
    clean = float((predictive.predictions == labels).double().mean())
    fog, attack = found.charts
    assert fog.lines[0].name == "fog"
    assert list(fog.lines[0].x) == [0, 1, 2, 3, 4, 5]
    assert attack.title == "How does it stand FGSM?"
    for chart in (fog, attack):
        assert chart.lines[0].y[0] == pytest.approx(clean)
    with pytest.raises(BellaError, match="fo"):
        run_materials([place / "two"], Asked(corruptions=("fig",)))


def test_images_that_changed_are_noticed(place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(place / "two", folder)
    moved = tmp_path / "images"
    shutil.copytree(place / "images", moved)
    config = (folder / "config.yaml").read_text().replace(str(place / "images"), str(moved))
    (folder / "config.yaml").write_text(config)
    (same,) = run_materials([folder], Asked())
    assert same.notes == []
    for i in range(9):
        Image.new("RGB", (40, 40), (40, 40, 40)).save(moved / "day" / f"dark-{i}.png")
    (other,) = run_materials([folder], Asked())
    assert "was evaluated on other test images" in other.notes[0]
    shutil.copytree(moved / "day", moved / "dawn")
    with pytest.raises(BellaError, match="their classes are dawn, day, night by now"):
        run_materials([folder], Asked())
    shutil.rmtree(moved)
    with pytest.raises(BellaError, match="give --data IMAGES"):
        run_materials([folder], Asked())
    (elsewhere,) = run_materials([folder], Asked(data=place / "images"))
    assert "validation" not in elsewhere.predictions["run"]
    assert torch.isfinite(elsewhere.of_told("test")[0].logits).all()


def test_images_that_were_skipped_are_counted_in_the_report(place, tmp_path):
    shutil.copytree(place / "two", tmp_path / "two")
    model = read_sealed_json(tmp_path / "two" / "model.json")
    assert model["skipped_images"] == 0
    write_sealed_json(tmp_path / "two" / "model.json", model | {"skipped_images": 3})
    (found,) = run_materials([tmp_path / "two"], Asked())
    assert found.facts["images that cannot be read"] == "3, skipped"


def test_a_training_that_goes_on_says_so(place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(place / "two", folder)
    (folder / "figures.json").write_text("[1]")
    with pytest.raises(BellaError, match="holds no mapping"):
        run_materials([folder], Asked())
    (folder / "figures.json").unlink()
    (found,) = run_materials([folder], Asked())
    assert "is not finished" in found.notes[0]


def test_a_run_on_texts_is_told_with_its_texts(tmp_path):
    columns = ["text,label"]
    for i in range(96):
        word = ("red", "blue", "green")[i % 3]
        columns.append(f"what is the {word} {WORDS[i % 9]},{word}")
    (tmp_path / "rows.csv").write_text("\n".join(columns))
    (tmp_path / "other.csv").write_text("text\nwho are you\nwhere is Oslo\n")
    (tmp_path / "network").mkdir()
    config = TextConfig(
        task="text",
        data=str(tmp_path / "rows.csv"),
        network=small_reader(tmp_path / "network"),
        particles=2,
        epochs=1,
        target_modules=["auto"],
    )
    train_text(config, tmp_path / "run", progress=False)
    (found,) = run_materials([tmp_path / "run"], Asked(ood=tmp_path / "other.csv"))
    then = read_json(tmp_path / "run" / "figures.json")
    (method,) = found.results["methods"].values()
    for name in ("accuracy", "nll", "mutual_information"):  # of the mixture, as the training's are
        assert method["figures"][name]["mean"] == pytest.approx(then[name], abs=1e-6)
    assert found.notes == []
    text = page([found])
    assert f"bella predict {tmp_path / 'run'} ROWS" in text
    assert "The least certain test texts" in text
    assert "who are you" in text
    assert "what is the" in text
    with pytest.raises(BellaError, match="corruptions and attacks are for images"):
        run_materials([tmp_path / "run"], Asked(attack="fgsm"))
