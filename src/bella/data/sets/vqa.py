"""VQA v2: questions about photographs of COCO, each answered by ten people.

The files are the authors': ``v2_OpenEnded_mscoco_train2014_questions.json``,
``v2_mscoco_train2014_annotations.json`` and the same of ``val2014``, beside COCO's folders
``train2014`` and ``val2014``. The label of a question is the answer that most people gave
(``multiple_choice_answer``); what every person said stands in ``.answers``.

Source: Goyal et al., Making the V in VQA matter, CVPR 2017. CC-BY 4.0.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from bella.data.images import Preprocess
from bella.data.labelled import UNKNOWN
from bella.data.sets.base import TENTH, DataSet
from bella.data.split import grouped_split
from bella.data.written import ImageQuestions
from bella.errors import BellaError, nearest
from bella.files import read_bytes, shortened

LARGEST = 2**30
"""Bytes that a file of questions or answers may have; the largest has 400 million."""
TYPES = ("yes/no", "number", "other")
COUNTS = {"train2014": 443_757, "val2014": 214_354}


class Asked(NamedTuple):
    """One question with its answers."""

    image: int
    question: str
    answer: str
    answers: tuple[str, ...]
    kind: str


def vqa(
    folder: Path | None,
    preprocess: Preprocess,
    seed: int = 0,
    *,
    answer_type: str | None = None,
    least: int = 9,
) -> dict[str, ImageQuestions]:
    """The parts of VQA v2: no image stands in two of them.

    Training and validation questions whose answer is no class are left out; test questions are all
    kept, and those whose answer is no class have the label `UNKNOWN`.

    Args:
        folder: holds the JSON files and the folders of images.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of which images are held out for validation.
        answer_type: ``yes/no``, ``number`` or ``other`` alone; all by default.
        least: how many training questions must have an answer that is to be a class.

    Raises:
        BellaError: files are missing or damaged, or no such type of answer.
    """
    if answer_type is not None and answer_type not in TYPES:
        raise BellaError(f"answer_type={answer_type!r}: choose {nearest(answer_type, TYPES)}.")
    _, root = VQA.found(folder)
    train, test = (_asked(root, part, answer_type) for part in COUNTS)
    counts = Counter(asked.answer for asked in train)
    classes = tuple(sorted(answer for answer, count in counts.items() if count >= least))
    if len(classes) < 2:
        raise BellaError(
            f"{len(classes)} answers have {least} training questions or more: choose a smaller "
            "least."
        )
    train = [asked for asked in train if counts[asked.answer] >= least]
    split = grouped_split([asked.image for asked in train], TENTH, seed)
    plain = preprocess.plain()
    return {
        name: _images(root, "train2014", [train[i] for i in rows], classes, process)
        for (name, rows), process in zip(split.items(), (preprocess, plain), strict=True)
    } | {"test": _images(root, "val2014", test, classes, plain)}


def _json(path: Path, entry: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(read_bytes(path, LARGEST))[entry]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VQA.damaged(path, shortened(error)) from None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise VQA.damaged(path, f"{entry} is no list of mappings")
    return found


def _asked(root: Path, part: str, answer_type: str | None) -> list[Asked]:
    """The questions of one part, in the order of their file."""
    questions = root / f"v2_OpenEnded_mscoco_{part}_questions.json"
    annotations = root / f"v2_mscoco_{part}_annotations.json"
    found = []
    try:
        answers = {row["question_id"]: row for row in _json(annotations, "annotations")}
        for row in _json(questions, "questions"):
            answer = answers[row["question_id"]]
            said = tuple(str(person["answer"]) for person in answer["answers"])
            kind = str(answer["answer_type"])
            known = str(answer["multiple_choice_answer"])
            found.append(Asked(int(row["image_id"]), str(row["question"]), known, said, kind))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BellaError):
            raise
        raise VQA.damaged(questions, f"a question without {shortened(error)}") from None
    VQA.expect(len(found), COUNTS[part], f"{part} questions", root)
    return [asked for asked in found if answer_type in (None, asked.kind)]


def _images(
    root: Path, part: str, asked: list[Asked], classes: tuple[str, ...], preprocess: Preprocess
) -> ImageQuestions:
    number = {answer: place for place, answer in enumerate(classes)}
    paths = [root / part / f"COCO_{part}_{one.image:012d}.jpg" for one in asked]
    there = {path.name for path in (root / part).iterdir()}
    missing = sorted({path for path in paths if path.name not in there})
    if missing:
        raise BellaError(
            f"{len(missing):,} of the images in {root / part} that questions are about are "
            f"missing, the first is {missing[0].name}. {VQA.get()}"
        )
    return ImageQuestions(
        paths,
        [one.question for one in asked],
        [one.answers for one in asked],
        [one.kind for one in asked],
        [number.get(one.answer, UNKNOWN) for one in asked],
        classes,
        preprocess,
    )


VQA = DataSet(
    "vqa2",
    "VQA v2",
    "image+question",
    "658,111 questions about 123,287 photographs, each with the answers of ten people",
    {
        "train": "the questions about nine tenths of train2014's images",
        "validation": "those about the other tenth",
        "test": "the 214,354 questions about val2014: those of its tests have no answers",
    },
    "https://visualqa.org/download.html, the zip files of v2 (21,708,861 "
    "bytes of training annotations, ...), and COCO's train2014.zip (13 GB) and val2014.zip (6 GB)",
    "Goyal et al., Making the V in VQA matter, CVPR 2017; CC-BY 4.0",
    vqa,
    {
        "JSON": tuple(
            name.format(part)
            for part in COUNTS
            for name in (
                "v2_OpenEnded_mscoco_{}_questions.json",
                "v2_mscoco_{}_annotations.json",
                "{}/",
            )
        )
    },
)
