"""`bella runs`: what is in a folder, whatever state it is in."""

from __future__ import annotations

import json
import os

import pytest
import yaml
from typer.testing import CliRunner

from bella.cli.app import app
from bella.errors import BellaError
from bella.files import write_json, write_sealed_json
from bella.runs.listing import list_runs


def run(folder, *, done=2, figures=None, changed=1_000_000, **asked):
    """The small files of a run."""
    folder.mkdir(parents=True)
    write_sealed_json(folder / "model.json", {"network": "hf:vit", "method": "low-rank"})
    asked = {"particles": 5, "epochs": 2, "data": "/photos", "transport": "svgd"} | asked
    (folder / "config.yaml").write_text(yaml.safe_dump(asked))
    write_json(folder / "run.json", {"history": [{}] * done, "seconds": 90.0})
    if figures is not None:
        write_json(folder / "figures.json", figures)
    for path in folder.iterdir():
        os.utime(path, (changed, changed))
    return folder


@pytest.fixture
def place(tmp_path):
    run(tmp_path / "solar", figures={"accuracy": 0.9125, "nll": 0.25, "ece": None})
    run(tmp_path / "deep" / "er" / "texts", figures={"rmse": 1.5}, changed=3_000_000)
    run(tmp_path / "stopped", done=1, epochs=7, changed=2_000_000)
    damaged = run(tmp_path / "damaged", changed=500_000)
    (damaged / "run.json").write_text("[]")
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)  # round in a circle
    return tmp_path


def test_the_newest_comes_first_and_each_says_how_far_it_came(place):
    found = list_runs(place)
    assert [run.folder.name for run in found] == ["texts", "stopped", "solar", "damaged"]
    assert [run.state for run in found] == ["finished", "epoch 1 of 7", "finished", "damaged"]
    solar = found[2].row()
    assert solar["figures"] == {"accuracy": 0.9125, "nll": 0.25}
    assert (solar["network"], solar["particles"], solar["seconds"]) == ("hf:vit", 5, 90.0)
    assert "run.json is damaged" in found[3].row()["problem"]


def test_a_run_is_listed_by_itself_and_nothing_is_no_error(place):
    assert [run.folder for run in list_runs(place / "solar")] == [place / "solar"]
    assert list_runs(place / "photos") == []
    with pytest.raises(BellaError, match="no folder"):
        list_runs(place / "gone")


def test_the_command_prints_a_table_or_json(place):
    shown = CliRunner().invoke(app, ["runs", str(place)], env={"COLUMNS": "160"}).stdout
    assert "4 runs in" in shown
    for word in ("solar", "0.9125", "low-rank x5", "1.5000", "epoch 1 of 7", "deep/er/texts"):
        assert word in shown
    assert "damaged (it holds no mapping)" in shown
    told = json.loads(CliRunner().invoke(app, ["runs", str(place), "--json"]).stdout)
    assert [row["state"] for row in told][:2] == ["finished", "epoch 1 of 7"]
    nothing = CliRunner().invoke(app, ["runs", str(place / "photos")])
    assert (nothing.exit_code, nothing.stdout[:8]) == (0, "No runs ")
