"""Questions about pictures: read from data sets by name, VQA v2's files or rows of one's own, and
as the tokens and pixels that a network learns from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bella.data import SETS, Preprocess
from bella.data.images import load_image
from bella.data.opening import is_set, open_data
from bella.data.records import Records, divided, read_records
from bella.data.sets.base import at_most
from bella.data.written import ImageQuestions
from bella.errors import BellaError
from bella.files import parsed, shown
from bella.metrics.vqa import TYPES, answer_type, votes
from bella.models.seeing import Seeing

ROLES: dict[str, tuple[str, ...]] = {
    "image": ("image", "picture", "path", "image_path", "file_name"),
    "question": ("question", "prompt", "query"),
    "answer": ("people", "answers", "answer", "label"),
    "type": ("type", "answer_type"),
}
"""Columns of a file of questions by what they are for, with their usual names."""
KIND = "image+question"
IGNORED = -100


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        image: path of the picture.
        question: as people wrote it.
        people: what each person answered; none where nobody did.
        kind: of the answer, one of `bella.metrics.vqa.TYPES`; empty where it is not known.
        answer: what is learnt: the answer that most people gave.
    """

    image: str
    question: str
    people: tuple[str, ...]
    kind: str
    answer: str

    def row(self) -> dict[str, Any]:
        """As it stands in a file of answers."""
        said = {"type": self.kind, "people": list(self.people)} if self.people else {}
        return {"image": self.image, "question": self.question, **said}


# ---------------------------------------------------------------- reading


def read_questions(
    data: str,
    *,
    folder: str | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> dict[str, list[Question]]:
    """The parts train, validation and test.

    Args:
        data: the name of a set, a folder with the files of one, or a file of rows.
        folder: where a set by name lies.
        columns: of a file, by what they are for.
        options: the set's own.
        limit: training questions at most, in equal shares of each answer; validation has a ninth
            of them then, at most: it is read and asked as often.
        test_limit: test questions at most, likewise.
        seed: of what is split here.

    Raises:
        BellaError: there are no such data, or a row that cannot be read.
    """
    if Path(data).is_dir():
        data, folder = set_in(Path(data)), data
    if not is_set(data, folder):
        rows = divided(read_records(data), None, seed)
        found = {part: of_records(some, columns or {}) for part, some in rows.items()}
        return {
            "train": found["train"][:limit],
            "validation": found["validation"][: _of_validation(limit)],
            "test": found["test"][:test_limit],
        }
    if columns:
        raise BellaError(f"{SETS[data].title} has no columns: leave out --column.")
    # Nothing is made of the pictures yet: the network decides their size.
    parts = open_data(data, Preprocess(32), seed=seed, folder=folder, limit=limit, options=options)
    for part, most in (("validation", _of_validation(limit)), ("test", test_limit)):
        if most is not None:
            parts[part] = at_most(most, parts[part])
    return {part: _of_set(parts[part]) for part in ("train", "validation", "test")}


def _of_validation(limit: int | None) -> int | None:
    """How many questions to validate on: they keep their share, one to nine."""
    return None if limit is None else max(1, limit // 9)


def set_in(folder: Path) -> str:
    """The name of the set of questions whose files lie in a folder.

    Raises:
        BellaError: of none; the sentence says what VQA v2 would need.
    """
    for name, dataset in SETS.items():
        if dataset.kind == KIND:
            try:
                dataset.found(folder)
            except BellaError:
                continue
            return name
    SETS["vqa2"].found(folder)
    raise AssertionError("one of the sets is VQA v2")


def _of_set(part: ImageQuestions) -> list[Question]:
    rows = zip(part.paths, part.questions, part.answers, part.kinds, part.labels, strict=True)
    return [
        Question(
            str(path),
            question,
            people,
            kind,
            part.classes[label] if label >= 0 else votes(people)[0][0],
        )
        for path, question, people, kind, label in rows
    ]


def of_records(
    records: Records, columns: Mapping[str, str], *, labelled: bool = True
) -> list[Question]:
    """Rows of a file: pictures by their paths, seen from the file.

    Args:
        records: the rows. An answer is a text, or a list of what several people said (in a CSV as
            JSON).
        columns: by what they are for.
        labelled: whether every question needs an answer.

    Raises:
        BellaError: a column is missing, or a row that cannot be read.
    """
    for role in columns:
        if role not in ROLES:
            raise BellaError(f"--column {role}={columns[role]}: task vqa reads {', '.join(ROLES)}.")
    needed = ("image", "question", "answer") if labelled else ("image", "question")
    names = {
        role: records.find(role, columns.get(role), usual)
        for role, usual in ROLES.items()
        if role in needed or records.has(columns.get(role), usual)
    }
    place = Path(records.name).absolute().parent
    return [
        _of_row(row, names, place, f"Row {number} of {records.name}", labelled)
        for number, row in enumerate(records.rows, 1)
    ]


def _of_row(
    row: Mapping[str, Any], names: Mapping[str, str], place: Path, where: str, labelled: bool
) -> Question:
    path, question = row.get(names["image"]), row.get(names["question"])
    for what, cell in (("picture", path), ("question", question)):
        if not isinstance(cell, str) or not cell.strip():
            raise BellaError(f"{where} has {shown(cell)} as its {what}, and needs a text there.")
    people = _people(row.get(names.get("answer", "")))
    if people is None or (labelled and not people):
        raise BellaError(
            f"{where} has {shown(row.get(names['answer']))} as its answer: give a text, or a list "
            "of what people said."
        )
    kind = row.get(names.get("type", "")) or ""
    answer = votes(people)[0][0] if people else ""
    if people and len(people) == 1:
        answer = people[0]
    if people and not kind:
        kind = answer_type(answer)
    if people and kind not in TYPES:
        raise BellaError(f"{where} is of the type {shown(kind)}: choose {', '.join(TYPES)}.")
    return Question(str(place / str(path)), str(question), people, str(kind), answer)


def _people(cell: Any) -> tuple[str, ...] | None:
    """What people said, none where nobody did; ``None`` where a cell is no answer."""
    if cell is None or cell == "":
        return ()
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = parsed(cell)
        except ValueError:
            return None
    said = [cell] if isinstance(cell, str) else cell
    if not isinstance(said, list) or not all(isinstance(one, str) and one.strip() for one in said):
        return None
    return tuple(said)


def digest_of(parts: Mapping[str, Sequence[Question]]) -> str:
    """A checksum of all questions and answers, and of which pictures they are about."""
    digest = hashlib.sha256()
    for part, some in parts.items():
        digest.update(part.encode())
        for one in some:
            digest.update(json.dumps([one.image, one.question, one.people, one.answer]).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- as a network reads them


class Pictured(Dataset[dict[str, Any]]):
    """Questions as tokens with their pictures, all of one shape; item i is a mapping of what the
    network takes, with ``labels``.

    Texts stand at the right: a network that goes on writing wants it so, and the last ``kept``
    places are then those of the answers, of which alone logits are needed.

    Args:
        questions: with answers.
        seeing: the network's reader.
        prompt: with ``<image>`` and ``{question}``.
        length: of all texts; that of the longest by default.
        kept: places from the end that hold every answer and what stands before it.
    """

    fixed = True

    def __init__(
        self,
        questions: Sequence[Question],
        seeing: Seeing,
        prompt: str,
        length: int | None = None,
        kept: int | None = None,
    ):
        self.questions = list(questions)
        self.seeing = seeing
        both = [answered_tokens(one, seeing, prompt) for one in questions]
        self.texts = [before + answer for before, answer in both]
        self.answers = [answer for _, answer in both]
        self.length = length or max(map(len, self.texts))
        self.kept = kept or max(map(len, self.answers)) + 1

    def __len__(self) -> int:
        return len(self.questions)

    def text(self, index: int) -> dict[str, Tensor]:
        """The tokens, and the labels of the last places."""
        text, answer = torch.tensor(self.texts[index]), torch.tensor(self.answers[index])
        ids = torch.full((self.length,), self.seeing.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        ids[-len(text) :] = text
        mask[-len(text) :] = 1
        labels = torch.full((self.kept,), IGNORED)
        labels[-len(answer) :] = answer
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.seeing.preprocess(load_image(self.questions[index].image))
        return {**self.text(index), "pixel_values": picture}


class Pictures(Sequence[Tensor]):
    """Pictures as the eye takes them, read when they are asked for.

    Args:
        paths: of the files.
        preprocess: from a PIL image to a tensor.
    """

    def __init__(self, paths: Sequence[str], preprocess: Preprocess):
        self.paths = list(paths)
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.preprocess(load_image(self.paths[index]))


def prompt_tokens(question: Question, seeing: Seeing, prompt: str) -> list[int]:
    """The tokens before an answer.

    Raises:
        BellaError: a prompt without a place for the question, or a question that stands for more
            than its words.
    """
    return seeing.tokens(asked(question, prompt))


def answered_tokens(question: Question, seeing: Seeing, prompt: str) -> tuple[list[int], list[int]]:
    """The tokens before a question's answer, and those of the answer with its end.

    They are those of the whole text, as the network would write it on: where a tokenizer would
    read the prompt otherwise once the answer follows, the answer is read by itself.

    Raises:
        BellaError: see `prompt_tokens`.
    """
    before = prompt_tokens(question, seeing, prompt)
    told, end = f" {question.answer}", seeing.tokenizer.eos_token_id
    whole = seeing.tokens(asked(question, prompt) + told)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, [*whole[len(before) :], end]
    alone = seeing.tokenizer(told, add_special_tokens=False)["input_ids"]
    return before, [*alone, end]


def asked(question: Question, prompt: str) -> str:
    """A prompt with its question.

    Raises:
        BellaError: it has no place for one.
    """
    if "{question}" not in prompt:
        raise BellaError(f"The prompt {prompt!r:.80} must hold {{question}}.")
    return prompt.replace("{question}", question.question)
