"""Drug reviews: negative, neutral or positive? Reviews of one condition are the shift."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from bella.data import open_data
from bella.data.images import Preprocess
from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Place, Task, Words, draw, whole
from bella.experiments.tasks.texts import START, classifier, padded
from bella.models.language import open_language

NETWORK = "minilm-l6"
COUNTS = {"train": 2_000, "validation": 500}
"""Reviews that each seed draws; of the package's choice all, in these proportions."""
LONGEST = 128
"""Tokens that are kept of a review."""


def drug_reviews_task(
    folder: str | Path | None = None, trained: int = 25_000, tested: int = 1500
) -> Task:
    """Patients' reviews with MiniLM; those of birth control are the shift, and have labels too.

    Each seed draws its training and validation reviews anew; the test part is the same for all. The
    choice of reviews that a package brings is smaller than these numbers: its seeds divide the same
    reviews anew.

    Args:
        folder: of UCI's files; the installed package's by default.
        trained: reviews to draw from, at most.
        tested: reviews in the test part, and of birth control, at most.
    """
    read: dict[str, Any] = open_data("drug-reviews", Preprocess(32), folder=folder)
    pools = {
        "review": at_most(trained, read["train"].join([read["validation"]])),
        "test": at_most(tested, read["test"]),
        "birth-control": at_most(tested, read["birth-control"]),
    }
    parts = padded(pools, open_language(NETWORK, 2).tokenizer, LONGEST)

    @cache
    def split(seed: int) -> dict[str, Place]:
        own = draw("review", parts["review"].labels, COUNTS, seed)
        return own | {name: whole(name, parts[name]) for name in ("test", "birth-control")}

    return Task(
        "drug-reviews",
        "Drug reviews (all conditions but birth control), MiniLM-L6",
        classifier(NETWORK, len(parts["review"].classes)),
        parts,
        split,
        {"shift": "birth-control"},
        {"epochs": 5, "learning_rate": 5e-4},
        START,
        words=Words(examples="reviews", noticing={"shift": "noticing birth control"}),
    )
