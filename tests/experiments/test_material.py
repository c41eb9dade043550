"""A report on a comparison's folder, written with it and again later."""

import json
import shutil

import pytest
from own_images import write_images, write_network

from bella.errors import BellaError
from bella.experiments.compare import compare
from bella.experiments.material import comparison_material, write_html
from bella.experiments.methods import METHODS
from bella.experiments.tasks import images_task
from bella.report.html import chapter


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    write_images(root / "images")
    write_network(root / "network")
    task = images_task(root / "images", f"hf:{root / 'network'}")
    methods = ["probe", "lora", "lora+temperature", "bella"]
    results = compare(
        task, methods, seeds=2, folder=root / "runs", progress=False, epochs=1, batch_size=8
    )
    write_html(task, results, root / "runs")
    return root


def test_a_comparison_writes_a_report(place):
    text = (place / "runs" / "report.html").read_text()
    assert METHODS["bella"].title in text
    assert "against LoRA + temperature" in text
    assert text.count("<img") >= 6  # all test images


def test_later_it_is_the_same_report(place):
    material = comparison_material(place / "runs")
    assert material.notes == []
    assert material.told == METHODS["bella"].title
    assert list(material.inputs) == ["test"]
    assert chapter(material, "c")["paired"]["rows"]
    written = json.loads((place / "runs" / "results.json").read_text())
    figures = written["methods"]["bella"]["figures"]["accuracy"]["values"]
    predictive, labels = material.of_told("test")
    assert float((predictive.predictions == labels).double().mean()) == pytest.approx(figures[0])


def test_without_its_images_it_shows_the_figures_and_says_so(place, tmp_path):
    shutil.copytree(place / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "results.json"
    results = json.loads(path.read_text())
    results["source"]["data"] = str(tmp_path / "gone")
    path.write_text(json.dumps(results))
    material = comparison_material(tmp_path / "runs")
    assert material.inputs == {}
    assert material.notes[0].startswith("The examples are not shown:")
    del results["source"]
    path.write_text(json.dumps(results))
    assert "does not say where the data" in comparison_material(tmp_path / "runs").notes[0]


def test_other_images_are_not_shown_for_those_that_were_predicted(place, tmp_path):
    shutil.copytree(place / "runs", tmp_path / "runs")
    write_images(tmp_path / "images", count=9, seed=5)
    path = tmp_path / "runs" / "results.json"
    results = json.loads(path.read_text())
    results["source"]["data"] = str(tmp_path / "images")
    path.write_text(json.dumps(results))
    material = comparison_material(tmp_path / "runs")
    assert material.inputs == {}
    assert "not those of the comparison any more" in material.notes[0]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(BellaError, match=r"holds no results\.json"):
        comparison_material(tmp_path)
