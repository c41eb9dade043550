"""Ways to answer questions side by side: one projector, runs that are kept, tables by kind."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from vqa_cases import save_llava, save_questions

from bella import BellaError
from bella.experiments.vqa import compare_vqa
from bella.folders import held

ASKED = {
    "prompt": "<image> question {question} answer",
    "particles": 2,
    "rank": 2,
    "epochs": 1,
    "batch_size": 8,
    "projector_epochs": 1,
    "test_limit": 4,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    place = tmp_path_factory.mktemp("compare")
    save_llava(place / "net")
    data = save_questions(place / "data", 24, people=False)
    return ASKED | {"data": str(data), "network": f"hf:{place / 'net'}"}


def test_methods_share_a_seed_s_projector_and_are_kept(settings, tmp_path):
    methods = ("untrained", "lora", "repulsive")
    results = compare_vqa(settings, methods, seeds=1, folder=tmp_path, progress=False)
    (projector,) = (tmp_path / "projectors").iterdir()
    for name in ("lora", "repulsive"):
        own = load_file(tmp_path / name / "seed-0" / "projector.safetensors")
        assert all((own[key] == x).all() for key, x in load_file(projector).items())
    for name in methods:
        lines = (tmp_path / name / "seed-0" / "answers.jsonl").read_text().splitlines()
        assert len(lines) == 4
        assert json.loads(lines[0])["human_confidence"] is None  # one reference each
    assert (tmp_path / "repulsive" / "seed-0" / "similarity.json").exists()
    assert not (tmp_path / "lora" / "seed-0" / "similarity.json").exists()
    page = (tmp_path / "results.md").read_text()
    assert "| All questions |" in page
    assert "| Other (paper: Table 10) |" in page
    assert "particles (repulsive)" in page
    before = (tmp_path / "repulsive" / "seed-0" / "answers.jsonl").stat().st_mtime_ns
    again = compare_vqa(settings, methods, seeds=1, folder=tmp_path, progress=False)
    assert again["methods"] == results["methods"]
    assert (tmp_path / "repulsive" / "seed-0" / "answers.jsonl").stat().st_mtime_ns == before
    with pytest.raises(BellaError, match="other settings"):
        compare_vqa(settings | {"epochs": 2}, methods, seeds=1, folder=tmp_path, progress=False)


def test_unknown_methods_and_no_seeds_are_refused(settings, tmp_path):
    with pytest.raises(BellaError, match="near are 'lora"):
        compare_vqa(settings, ("lorra",), seeds=1, folder=tmp_path)
    with pytest.raises(BellaError, match="seeds=0"):
        compare_vqa(settings, ("lora",), seeds=0, folder=tmp_path)


def test_a_folder_that_another_comparison_writes_is_refused(settings, tmp_path):
    with held(tmp_path), pytest.raises(BellaError, match="Another run is writing to"):
        compare_vqa(settings, ["untrained"], seeds=1, folder=tmp_path, progress=False)
