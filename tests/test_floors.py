"""Imports run down the floors, and the picture of them is the code's."""

from __future__ import annotations

import draw
import floors
import networkx as nx
import pytest


@pytest.fixture(scope="module")
def house() -> nx.DiGraph:
    return floors.imports()


def test_no_import_runs_back_up_and_none_in_a_circle(house):
    assert floors.complaints(house) == []


def test_the_picture_is_of_this_code(house):
    drawn = draw.PICTURE.read_text(encoding="utf-8")
    assert drawn == draw.picture(house), "run `python docs/draw.py`"


def test_imports_are_found_wherever_they_stand(house):
    assert house.has_edge("bella.transport.svgd", "bella.transport.coupled")  # at the top
    assert house.has_edge("bella.cli.fit", "bella.runs")  # inside a function
    assert house.has_edge(
        "bella.recipes", "bella.posteriors.low_rank.posterior"
    )  # as bella.low_rank
    assert not house.has_edge("bella.storage", "bella.posterior")  # for type checkers alone


@pytest.mark.parametrize(
    ("user", "used", "words"),
    [
        ("bella.particles.axis", "bella.transport.svgd", "particles uses transport"),
        ("bella.trees", "bella.files", "trees uses files"),
        ("bella.transport.gram", "bella.transport.svgd", "import each other"),
        ("bella.news", "bella.errors", "news stands on no floor"),
    ],
)
def test_a_wrong_import_is_complained_about(house, user, used, words):
    wrong = house.copy()
    wrong.add_edge(user, used)
    if "each other" in words:
        wrong.add_edge(used, user)
    found = floors.complaints(wrong)
    assert any(words in sentence for sentence in found), found


def test_what_is_gone_is_complained_about(house, monkeypatch):
    without = nx.DiGraph(house)
    without.remove_node("bella.console")
    assert floors.complaints(without) == ["console is on a floor and not in the code."]
    monkeypatch.setitem(floors.UP, ("trees", "files"), "no such arrow")
    assert "listed in UP and not in the code" in " ".join(floors.complaints(house))


def test_every_room_of_the_picture_has_its_modules(house):
    picture = draw.picture(house)
    for name in floors.places():
        assert f">{name}" in picture
    for module in ("recompute", "predictive", "gram", "early_stop"):
        assert f">{module}<" in picture
