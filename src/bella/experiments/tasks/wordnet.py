"""WordNet's definitions: to which of twenty categories of nouns does one belong?

Definitions of verbs, adjectives and adverbs belong to none, and are the shifts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bella.data import open_data
from bella.data.images import Preprocess
from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Place, Task, Words, draw, whole
from bella.experiments.tasks.texts import START, classifier, padded
from bella.models.language import OpenedLanguage, open_language
from bella.models.opened import Defaults

NETWORK = "minilm-l6"
CATEGORIES = 20
"""The largest; the others have too few definitions to be in every part."""
COUNTS = {"train": 2_000, "validation": 500}
"""Definitions that each seed draws."""
LONGEST = 48
"""Tokens that are kept of a definition; few are longer, and all are padded to the longest."""


def wordnet_task(
    folder: str | Path | None = None,
    nouns: int = 25_000,
    tested: int = 1500,
    shifted: int = 500,
    counts: Mapping[str, int] = COUNTS,
    longest: int = LONGEST,
    target_modules: tuple[str, ...] | None = None,
) -> Task:
    """WordNet's definitions of nouns with MiniLM: 2,000 to train on.

    Each seed draws its training and validation definitions anew from the same 25,000; the test part
    is the same for all.

    Args:
        folder: of WordNet's data files; Debian's by default.
        nouns: definitions of nouns to draw from.
        tested: definitions of nouns in the test part.
        shifted: definitions of verbs, of adjectives and of adverbs, each.
        counts: definitions that each seed draws for ``train`` and ``validation``.
        longest: tokens that are kept of a definition.
        target_modules: layers that change; the network's own where nothing is said.
    """
    read: dict[str, Any] = open_data("wordnet", Preprocess(32), folder=folder)
    nouns_of = read["train"]
    sizes = Counter(nouns_of.labels)
    largest = sorted(sorted(sizes, key=lambda k: -sizes[k])[:CATEGORIES])
    chosen = [nouns_of.classes[k] for k in largest]
    read = open_data("wordnet", Preprocess(32), folder=folder, classes=chosen)
    pools = {"noun": at_most(nouns, read["train"]), "test": at_most(tested, read["test"])}
    others = ("verb", "adjective", "adverb")
    pools |= {name: at_most(shifted, read[name]) for name in others}
    parts = padded(pools, open_language(NETWORK, 2).tokenizer, longest)
    open_own = classifier(NETWORK, len(chosen))

    def opened(seed: int) -> OpenedLanguage:
        found = open_own(seed)
        if target_modules is None:
            return found
        defaults = Defaults(target_modules, found.defaults.modules_to_save)
        return found._replace(defaults=defaults)

    @cache
    def split(seed: int) -> dict[str, Place]:
        own = draw("noun", parts["noun"].labels, counts, seed)
        return own | {name: whole(name, parts[name]) for name in ("test", *others)}

    return Task(
        "wordnet",
        "WordNet's definitions (20 categories of nouns), MiniLM-L6",
        opened,
        parts,
        split,
        {name: name for name in others},
        {"epochs": 3, "learning_rate": 1e-3},
        START,
        words=Words(
            examples="definitions",
            noticing={name: f"noticing {name}s" for name in others},
            unscored=others,
        ),
    )
