"""Settings are checked once, and one word may stand for another."""

from __future__ import annotations

import pytest

import bella
from bella.training.settings import Settings, checked


@pytest.mark.parametrize("name", ["recompute", "checkpoint"])
def test_recomputed_modules_are_named_by_either_word(name):
    settings = checked(Settings, {name: ["blocks.0"]})
    assert settings.checkpoint == ["blocks.0"]
    # What is written into a run folder has one word, and can be read again.
    written = settings.model_dump()
    assert written["checkpoint"] == ["blocks.0"]
    assert "recompute" not in written
    assert checked(Settings, written) == settings


def test_both_words_at_once_are_refused():
    with pytest.raises(bella.BellaError, match="'checkpoint' and 'recompute' are one setting"):
        checked(Settings, {"recompute": True, "checkpoint": False})


def test_a_wrong_value_is_named_by_the_word_that_was_used():
    with pytest.raises(bella.BellaError, match="recompute"):
        checked(Settings, {"recompute": 3})


def test_a_divergence_that_would_never_count_whole_is_refused():
    with pytest.raises(bella.BellaError, match=r"kl_warmup=15 is longer .*epochs=5"):
        checked(Settings, {"epochs": 5, "kl_warmup": 15})
    assert checked(Settings, {"epochs": 5, "kl_warmup": 5}).kl_warmup == 5


def test_an_unknown_setting_is_answered_with_the_known_ones():
    with pytest.raises(bella.BellaError, match=r"'epoch' is no setting.*epochs"):
        checked(Settings, {"epoch": 3})


def test_a_seed_that_no_generator_takes_is_refused():
    assert checked(Settings, {"seed": 2**63 - 1}).seed == 2**63 - 1
    for seed in (-1, 2**63, 2**70):
        with pytest.raises(bella.BellaError, match=f"seed={seed}"):
            checked(Settings, {"seed": seed})
