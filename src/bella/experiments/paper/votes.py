"""Answers of runs on questions about images, as several tables and figures read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bella.errors import BellaError
from bella.files import parsed, read_bytes

Rows = Sequence[Mapping[str, Any]]
TYPES = ("yes/no", "number", "other")
FILE = "answers.jsonl"
LARGEST = 2**30
"""Bytes of a file of answers at most."""
NEEDED: dict[str, Any] = {
    "image": str,
    "question": str,
    "type": str,
    "people": list,
    "answer": str,
    "entropy": int | float,
    "mutual_information": int | float,
}

NONE = (
    "This is made of answers to questions about images: give --option answers=FOLDER of "
    "`bella compare --task vqa`, or answers={NAME: FILE} with the answers.jsonl of one or more "
    "runs of `bella fit --task vqa`."
)


def systems_of(answers: str | Mapping[str, str]) -> dict[str, Rows]:
    """Every system's answers by its name.

    Args:
        answers: a file; a mapping of names to files; or the folder of a comparison, which has a
            folder a method and in it one a seed (the first is read).

    Raises:
        BellaError: nothing was given, or there are no answers.
    """
    if not answers:
        raise BellaError(NONE)
    if isinstance(answers, Mapping):
        return {str(name): read_answers(Path(path)) for name, path in answers.items()}
    path = Path(answers)
    if path.is_dir() and not (path / FILE).exists():
        found = {one.parent.parent.name: one for one in sorted(path.glob(f"*/seed-0/{FILE}"))}
        if not found:
            raise BellaError(f"{path} holds no METHOD/seed-0/{FILE}. {NONE}")
        return {name: read_answers(one) for name, one in found.items()}
    path = path / FILE if path.is_dir() else path
    return {path.parent.name: read_answers(path)}


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of an ``answers.jsonl``: question, image, type, answer, people, entropy, mutual
    information, and whether the answer is right.

    Raises:
        BellaError: no such file, or a line of another form; it says which.
    """
    rows = []
    for number, line in enumerate(read_bytes(path, LARGEST).decode("utf-8").splitlines(), 1):
        try:
            row = parsed(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(
            isinstance(row.get(name), kind) for name, kind in NEEDED.items()
        ):
            raise BellaError(
                f"Line {number} of {path} is no answer to a question about an image: it needs "
                f"{', '.join(NEEDED)}."
            )
        rows.append(row)
    return rows


def types_of(systems: Mapping[str, Rows], wanted: Sequence[str] = TYPES) -> list[str]:
    """The types of questions that are there, in the paper's order.

    Raises:
        BellaError: none of those wanted.
    """
    there = {row["type"] for rows in systems.values() for row in rows}
    found = [kind for kind in wanted if kind in there]
    if not found:
        raise BellaError(
            f"The answers are to questions of the types {', '.join(sorted(there))}; this figure is "
            f"of {', '.join(wanted)}."
        )
    return found
