"""easy-VQA: questions about pictures of one coloured shape each, which come with a package.

5,000 pictures of 64x64 pixels, 48,248 questions, 13 answers: three shapes, eight colours, yes, no.

Source: Zhou, easy-VQA, 2019. MIT.
"""

from __future__ import annotations

import json
from pathlib import Path

from bella.data.images import Preprocess
from bella.data.sets.base import TENTH, DataSet, folder_of
from bella.data.split import grouped_split
from bella.data.written import ImageQuestions
from bella.files import read_bytes, shortened

COUNTS = {"train": 38_575, "test": 9_673}


def easy_vqa(
    folder: Path | None, preprocess: Preprocess, seed: int = 0
) -> dict[str, ImageQuestions]:
    """The parts of easy-VQA: no image stands in two of them.

    Args:
        folder: the folder ``data`` of the package or of its repository; the installed package's by
            default.
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of which images are held out for validation.

    Raises:
        MissingExtraError: the package is not installed.
        BellaError: files are missing or damaged.
    """
    if folder is None:
        folder = folder_of("easy_vqa", EASY_VQA) / "data"
    _, root = EASY_VQA.found(folder)
    classes = tuple(sorted(read_bytes(root / "answers.txt").decode().split()))
    train = _part(root, "train", classes, preprocess)
    rows = grouped_split(train.paths, TENTH, seed)
    return {
        "train": train.select(rows["train"]),
        "validation": train.select(rows["validation"], preprocess.plain()),
        "test": _part(root, "test", classes, preprocess.plain()),
    }


def _part(
    root: Path, part: str, classes: tuple[str, ...], preprocess: Preprocess
) -> ImageQuestions:
    path = root / part / "questions.json"
    try:
        rows = [(str(q), str(a), int(i)) for q, a, i in json.loads(read_bytes(path))]
        labels = [classes.index(answer) for _, answer, _ in rows]
    except (ValueError, TypeError, RecursionError) as error:
        raise EASY_VQA.damaged(path, shortened(error)) from None
    EASY_VQA.expect(len(rows), COUNTS[part], f"{part} questions", root)
    return ImageQuestions(
        [root / part / "images" / f"{image}.png" for *_, image in rows],
        [question for question, *_ in rows],
        [(answer,) for _, answer, _ in rows],
        ["yes/no" if answer in ("yes", "no") else "other" for _, answer, _ in rows],
        labels,
        classes,
        preprocess,
    )


EASY_VQA = DataSet(
    "easy-vqa",
    "easy-VQA",
    "image+question",
    "48,248 questions about 5,000 pictures of 64x64 pixels, 13 answers",
    {
        "train": "the questions about nine tenths of the 4,000 training images",
        "validation": "those about the other tenth",
        "test": "the 9,673 questions about the 1,000 test images",
    },
    "pip install easy-vqa (3 MB)",
    "Zhou, easy-VQA, 2019; MIT",
    easy_vqa,
    {"questions": ("answers.txt", "train/questions.json", "test/questions.json", "train/images/")},
)
