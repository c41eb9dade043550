"""Tables 5 and 10, of files of answers."""

from __future__ import annotations

import json
import math

import pytest

import bella
from bella.experiments.paper import TABLES
from bella.experiments.paper.item import Setup


def write(path, rows):
    """Answers of (type, how many of ten people say the same, entropy, mutual information)."""
    lines = [
        {
            "image": "a.png",
            "question": "what?",
            "type": kind,
            "people": ["red"] * people + ["blue"] * (10 - people),
            "answer": "Red.",
            "entropy": entropy,
            "mutual_information": mi,
        }
        for kind, people, entropy, mi in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_figures_are_told_by_kind_and_by_what_matches(tmp_path):
    rows = [
        ("yes/no", 10, 0.2, 0.01),
        ("yes/no", 4, 0.4, 0.03),
        ("yes/no", 1, 0.9, 0.05),
        ("number", 2, 0.7, 0.0),
    ]
    write(tmp_path / "lora-ensemble" / "seed-0" / "answers.jsonl", rows)
    write(tmp_path / "single" / "seed-0" / "answers.jsonl", rows[:1])
    setup = Setup(tasks=[], methods=[], folder=tmp_path)
    product = TABLES["5"].make(setup, answers=str(tmp_path))
    found = {(row[0], row[1]): row[2:] for row in product.sheet.rows}
    assert list(found) == [
        ("yes/no", "lora-ensemble"),
        ("yes/no", "single"),
        ("number", "lora-ensemble"),
    ]
    theirs, right, wrong, accuracy, exact, count, mi_right, mi_wrong = found[
        "yes/no", "lora-ensemble"
    ]
    assert theirs == "Ensemble Bella"
    assert (right, wrong) == pytest.approx((0.3, 0.9))
    assert accuracy == pytest.approx(100 * 2.3 / 3)  # one of ten people counts .3
    assert exact == pytest.approx(100 * 2 / 3)
    assert count == 3
    assert (mi_right, mi_wrong) == pytest.approx((0.02, 0.05))
    assert math.isnan(found["number", "lora-ensemble"][1])  # none is right
    with pytest.raises(bella.BellaError, match="No answer is of the kind other"):
        TABLES["10"].make(setup, answers=str(tmp_path))


def test_without_answers_there_is_one_sentence(tmp_path):
    with pytest.raises(bella.BellaError, match="answers=FOLDER"):
        TABLES["5"].make(Setup(tasks=[], methods=[], folder=tmp_path))


def test_similarities_are_read_beside_the_answers(tmp_path):
    place = tmp_path / "repulsive" / "seed-0"
    place.mkdir(parents=True)
    setup = Setup(tasks=[], methods=[], folder=tmp_path)
    with pytest.raises(bella.BellaError, match=r"holds no similarity\.json"):
        TABLES["9"].make(setup, answers=str(tmp_path))
    for cosines in ([[1, 0.2]], [["a", 1], [1, 1]], 3, []):
        (place / "similarity.json").write_text(json.dumps({"similarity": cosines}))
        with pytest.raises(bella.BellaError, match="holds no square"):
            TABLES["9"].make(setup, answers=str(tmp_path))
    (place / "similarity.json").write_text('{"similarity": [[1.0, 0.2], [0.2, 1.0]]}')
    for folder in (tmp_path, place):
        product = TABLES["9"].make(setup, answers=str(folder))
        assert [row[2:] for row in product.sheet.rows] == [["0", 1.0, 0.2], ["1", 0.2, 1.0]]
        assert "0.200" in product.shows
