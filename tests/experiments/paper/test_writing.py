"""A product as files."""

from __future__ import annotations

import csv
import json

import pytest
from paper_cases import small_task
from PIL import Image

from bella.experiments.paper import TABLES
from bella.experiments.paper.product import Column, Sheet, middle_of, spread_of
from bella.experiments.paper.running import Asked, make
from bella.experiments.paper.writing import write_csv

SHEET = Sheet(
    (Column("row"), Column("accuracy", "%", "{:.1f}"), Column("count", form="{:,}")),
    (("a", [90.0, 92.0], 1200), ("b", None, 3), ("c", [float("nan"), 80.0], 4)),
)


def test_several_seeds_are_their_mean_and_spread():
    assert SHEET.entries() == [["a", "91.0 ± 1.4", "1,200"], ["b", "-", "3"], ["c", "80.0", "4"]]
    assert SHEET.words == 1
    assert middle_of([1.0, 3.0]) == 2
    assert spread_of([1.0, 3.0]) == pytest.approx(2**0.5)
    assert spread_of(3.0) is None
    assert middle_of(float("nan")) is None


def test_a_spread_is_a_column_of_its_own(tmp_path):
    write_csv(SHEET, tmp_path / "sheet.csv")
    with (tmp_path / "sheet.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["row", "accuracy (%)", "accuracy (%), spread", "count"]
    assert rows[1][:2] == ["a", "91.0"]
    assert float(rows[1][2]) == pytest.approx(2**0.5)
    assert rows[2] == ["b", "", "", "3"]


def test_a_table_is_written_whole(tmp_path):
    asked = Asked(
        comparisons=tmp_path / "comparisons",
        tasks=[small_task(), small_task("more")],
        methods=["probe-ensemble", "probe"],
        seeds=2,
    )
    found = make(TABLES["1"], "table-1", tmp_path / "out", asked, "bella table 1")
    folder = tmp_path / "out"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "table-1.csv",
        "table-1.json",
        "table-1.md",
        "table-1-paper.csv",
        *(f"table-1-{name}.{form}" for name in ("squares", "more") for form in ("png", "svg")),
    }
    assert json.loads((folder / "table-1.json").read_text()) == found
    assert [row[0] for row in found["rows"]] == ["ensemble of probes", "linear probe"]
    assert len(found["rows"][0][2]) == 2  # a value a seed
    assert found["made"]["command"] == "bella table 1"
    assert found["made"]["seconds"] > 0
    page = (folder / "table-1.md").read_text()
    assert "| ensemble of probes |  |" in page
    assert "| data | Ensemble Bella (%) |" in page
    assert "97.57" in page
    with Image.open(folder / "table-1-more.png") as picture:
        assert picture.width > 500
