"""`bella table` and `bella figure`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import bella
from bella.cli.app import app
from bella.experiments.paper import FIGURES, TABLES


def run(*words):
    return CliRunner().invoke(app, list(words), catch_exceptions=True)


@pytest.mark.parametrize(("kind", "items"), [("table", TABLES), ("figure", FIGURES)])
def test_without_a_number_it_says_what_there_is(kind, items):
    found = json.loads(run(kind, "--json").stdout)
    assert list(found) == list(items)
    assert all(item["title"] and item["cost"] for item in found.values())
    assert f"bella {kind} NUMBER" in run(kind).stdout


def test_what_makes_no_sense_is_a_sentence():
    for words, said in (
        (("table", "12"), "There is no table 12"),
        (("table", "1", "--network", "hf:some"), "--network is for --data"),
        (("table", "1", "--severities", "3"), "--severities is for --corrupt"),
        (("table", "1", "--option", "nonsense=1"), "has no option 'nonsense'"),
    ):
        error = run(*words).exception
        assert isinstance(error, bella.BellaError), words
        assert said in str(error)
