"""Patterns matched in bounded time, with the answers of Python's own matcher."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bella.errors import BellaError
from bella.particles import targets
from bella.patterns import LONGEST, fullmatch

ATOMS = st.sampled_from(
    ("a", "b", ".", "1", r"\.", "[ab]", "[^a]", r"[\da]", r"\w", r"\D", r"\b", r"\B", "^", "$")
) | st.sampled_from((r"\Z", "(?=a)", "(?!b)", "(?<=b)", "(?<!a)", "(?:)"))
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format)
        | st.tuples(
            inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "+?"])
        ).map("({0[0]}){0[1]}".format)
    ),
    max_leaves=12,
)


@settings(max_examples=600, deadline=None)
@given(pattern=PATTERNS, text=st.text("ab1._\n", min_size=1, max_size=7))
def test_answers_are_those_of_re(pattern, text):
    assert fullmatch(pattern, text) == (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        (r".*layers\.(10|11)\.mlp\.fc[12]", {"layers.10.mlp.fc1", "layers.11.mlp.fc1"}),
        (r"^(?!.*mlp).*\.(q|v)_proj$", {f"layers.{i}.attn.q_proj" for i in range(12)}),
        (r"layers\.\d\.mlp.*", {f"layers.{i}.mlp.fc1" for i in range(10)}),
    ],
)
def test_names_of_layers_are_found(pattern, wanted):
    names = [f"layers.{i}.{part}" for i in range(12) for part in ("mlp.fc1", "attn.q_proj")]
    assert {name for name in names if targets.matches(name, pattern)} == wanted


@pytest.mark.parametrize(
    "pattern",
    [
        r"((.*)*)*\d!",
        "(a|aa)*!",
        ".*" * 12 + "!",
        "(a?){200}a{200}!",
        "(.*){1000000000}!",
        "(a{0,300}b?){0,300}!",
        "(?=(.*)*!).*",
        "(" * 60 + "a*" + "a?b)*" * 60,
        "(" * 160 + "a" + ")*" * 160,
    ],
)
def test_patterns_with_more_ways_than_seconds_end_at_once(pattern):
    begun = time.perf_counter()
    with contextlib.suppress(BellaError):  # too deeply nested: how deep that is, is Python's to say
        assert not fullmatch(pattern, "a" * 60 + "." + "a" * 60)
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a" * (LONGEST + 1), "characters"),
        (r"(a)\1", "groupref"),
        ("(?i)a", "flags"),
        ("(?i:a)", "flags"),
        ("(?>a)", "atomic"),
        ("a*+", "possessive"),
    ],
)
def test_what_needs_trying_is_refused(pattern, said):
    with pytest.raises(BellaError, match=said):
        fullmatch(pattern, "aa")


def test_what_is_no_pattern_names_no_layer():
    assert not targets.matches("fc1", "(")
