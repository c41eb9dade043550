"""Regular expressions matched in bounded time, whoever wrote them.

Python's own matcher tries one way after the other, and ``((.*)*)*x`` has more ways than there are
seconds in a year. A folder of a stranger holds such expressions (they name layers), so names are
matched another way here: a pattern maps the SET of places in the text where it may begin to the set
of places where it may end, part by part. Sets are whole numbers, a bit for a place, and a
repetition is done when its set stays. Where the body of a repetition ends is found once for each
place. The time is bounded by (length of the text)³ x (length of the pattern), and the answer is the
one of `re.fullmatch`.

Source: Thompson 1968, Regular Expression Search Algorithm: all ways at once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from bella.errors import BellaError

LONGEST = 500
"""Characters of a pattern, and of a text."""

_ONE_CHARACTER = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)

_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


def fullmatch(pattern: str, text: str) -> bool:
    """Whether ``pattern`` matches the whole of a text that is not empty, as `re.fullmatch` says.

    Raises:
        BellaError: the pattern is longer than `LONGEST`, or uses what needs trying one way after
            the other: back references, conditions, possessive or atomic groups, flags.
        re.error: it is no regular expression.
    """
    if len(text) > LONGEST:
        return False
    try:
        return bool(_Match(text).ends(_parsed(pattern), 1) >> len(text) & 1)
    except (RecursionError, OverflowError):
        raise BellaError(f"The pattern {pattern[:80]!r} is nested too deeply.") from None


@functools.lru_cache(maxsize=256)
def _parsed(pattern: str) -> Sequence[Any]:
    if len(pattern) > LONGEST:
        raise BellaError(f"A pattern of {len(pattern)} characters: give at most {LONGEST}.")
    parsed = _parser.parse(pattern)
    if parsed.state.flags & ~re.UNICODE:
        raise _unsupported("flags")
    return parsed


def _unsupported(what: str) -> BellaError:
    return BellaError(f"A pattern for names of layers uses {what}: write it without.")


@functools.lru_cache(maxsize=4096)
def _where(text: str) -> dict[str, int]:
    """The places of each character of a text: many patterns are asked about the same names."""
    found: dict[str, int] = {}
    for place, c in enumerate(text):
        found[c] = found.get(c, 0) | 1 << place
    return found


class _Match:
    """One text, and the maps from sets of places to sets of places."""

    def __init__(self, text: str):
        self.text = text
        self.all = (1 << len(text) + 1) - 1
        self.held: dict[Any, int] = {}
        self.where = _where(text)
        self.turns: dict[tuple[int, int], int] = {}

    def ends(self, parts: Sequence[Any], starts: int) -> int:
        """Where the sequence may end that begins at one of ``starts``."""
        for kind, value in parts:
            if not starts:
                break
            starts = self.part(kind, value, starts)
        return starts

    def part(self, kind: Any, value: Any, starts: int) -> int:
        if kind in _ONE_CHARACTER:
            return (starts & self.places(kind, value)) << 1 & self.all
        if kind is op.BRANCH:
            found = 0
            for branch in value[1]:
                found |= self.ends(branch, starts)
            return found
        if kind is op.SUBPATTERN:
            _, added, removed, body = value
            if added or removed:
                raise _unsupported("flags")
            return self.ends(body, starts)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, body = value
            return self.repeat(least, most, body, starts)
        if kind is op.AT:
            return starts & self.anchors(value)
        if kind in (op.ASSERT, op.ASSERT_NOT):
            holds = self.looks(*value)
            return starts & (holds if kind is op.ASSERT else self.all & ~holds)
        raise _unsupported(str(kind).lower().replace("_", " "))

    def repeat(self, least: int, most: int, body: Sequence[Any], starts: int) -> int:
        """All ends of ``least`` to ``most`` times ``body``.

        A body that takes a character empties the set in at most len(text) + 1 turns, one that may
        take none lets it only grow: either way the loops end early however large the numbers are.
        """
        for _ in range(least):
            after = self.turn(body, starts)
            if after == starts:
                break
            starts = after
        found = fresh = starts
        for _ in range(most - least if most is not op.MAXREPEAT else len(self.text) + 1):
            fresh = self.turn(body, fresh) & ~found
            if not fresh:
                break
            found |= fresh
        return found

    def turn(self, body: Sequence[Any], starts: int) -> int:
        """Where one turn of a repetition may end. Turns within turns would multiply if each place
        were followed more than once."""
        if len(body) == 1 and body[0][0] in _ONE_CHARACTER:
            return self.ends(body, starts)
        found = 0
        while starts:
            place = starts & -starts
            starts ^= place
            key = id(body), place
            if key not in self.turns:
                self.turns[key] = self.ends(body, place)
            found |= self.turns[key]
        return found

    def places(self, kind: Any, value: Any) -> int:
        """The places whose character the part takes."""
        if kind is op.LITERAL:
            return self.where.get(chr(value), 0)
        key = kind, tuple(value) if kind is op.IN else value
        if key not in self.held:
            self.held[key] = sum(
                places for c, places in self.where.items() if _takes(kind, value, c)
            )
        return self.held[key]

    def anchors(self, kind: Any) -> int:
        last = len(self.text)
        if kind in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return 1
        if kind is op.AT_END_STRING:
            return 1 << last
        if kind is op.AT_END:  # also before a newline that ends the text
            return 1 << last | (1 << last - 1 if self.text.endswith("\n") else 0)
        word = [c.isalnum() or c == "_" for c in self.text]
        edges = sum(
            1 << place
            for place, (left, right) in enumerate(zip([False, *word], [*word, False], strict=True))
            if left != right
        )
        return edges if kind is op.AT_BOUNDARY else self.all & ~edges

    def looks(self, direction: int, body: Sequence[Any]) -> int:
        """The places that ``body`` may begin at (1), or end at (-1)."""
        starts = [1 << place for place in range(len(self.text) + 1)]
        if direction < 0:
            return functools.reduce(lambda found, start: found | self.ends(body, start), starts, 0)
        return sum(start for start in starts if self.ends(body, start))


def _takes(kind: Any, value: Any, c: str) -> bool:
    if kind is op.ANY:
        return c != "\n"
    if kind is op.LITERAL:
        return ord(c) == value
    if kind is op.NOT_LITERAL:
        return ord(c) != value
    if kind is op.RANGE:
        return value[0] <= ord(c) <= value[1]
    if kind is op.CATEGORY:
        return _CATEGORIES[value](c)
    negated = value[0][0] is op.NEGATE
    return negated != any(_takes(k, v, c) for k, v in value[negated:])
