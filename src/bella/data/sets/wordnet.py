"""WordNet 3.0: what words mean, as two tasks on text with a shift of their own.

``wordnet``: to which of the noun categories (``animal``, ``food``, ``time``, ...) does a definition
belong? Definitions of verbs, adjectives and adverbs belong to none and are the shift.
``wordnet-choice``: which of four words of one category has this definition? Nouns train, verbs and
adjectives are the shift, and have right answers too.

The files are WordNet's own: ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv``.

Source: Miller, WordNet: a lexical database for English, Communications of the ACM 38, 1995;
Fellbaum, WordNet: an electronic lexical database, 1998. WordNet licence.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from bella.data.sets.base import DataSet
from bella.data.split import FRACTIONS
from bella.data.written import LabelledTexts, Questions
from bella.errors import BellaError
from bella.files import read_bytes

FOLDER = Path("/usr/share/wordnet")
"""Where Debian's package ``wordnet-base`` puts the files."""

CATEGORIES = (
    ("adj", "all pert"),
    ("adv", "all"),
    (
        "noun",
        "Tops act animal artifact attribute body cognition communication event feeling food group "
        "location motive object person phenomenon plant possession process quantity relation shape "
        "state substance time",
    ),
    (
        "verb",
        "body change cognition communication competition consumption contact creation emotion "
        "motion perception possession social stative weather",
    ),
    ("adj", "ppl"),
)
"""The lexicographers' files in the order of their numbers (lexnames(5WN)): 45 of them."""
NAMES = tuple((kind, name) for kind, names in CATEGORIES for name in names.split())
FILES = {"noun": "data.noun", "verb": "data.verb", "adjective": "data.adj", "adverb": "data.adv"}
CHOICES = 4
LARGEST = 2**26


class Sense(NamedTuple):
    """One sense: its category, the words that have it, and what it means."""

    category: str
    words: tuple[str, ...]
    definition: str


def read_senses(path: Path) -> list[Sense]:
    """The senses in one of WordNet's data files, in their order (wndb(5WN)).

    Definitions are those of the gloss, without the examples in it; of senses that share a
    definition the first is kept, so that no text can stand in two parts.

    Raises:
        BellaError: the file is damaged or another.
    """
    found: dict[str, Sense] = {}
    text = read_bytes(path, LARGEST).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("  "):  # the licence
            continue
        try:
            data, gloss = line.split(" | ", 1)
            fields = data.split()
            category = NAMES[int(fields[1])][1]
            words = tuple(fields[4 + 2 * i] for i in range(int(fields[3], 16)))
        except (ValueError, IndexError):
            raise WORDNET.damaged(path, f"line {number}: {line[:60]!r}") from None
        definition = gloss.split('; "')[0].strip().rstrip(";").strip()
        if definition:
            found.setdefault(definition, Sense(category, tuple(map(_plain, words)), definition))
    if not found or not text.endswith("\n"):
        raise WORDNET.damaged(path, "it ends within a line, or holds none")
    return list(found.values())


def _plain(word: str) -> str:
    """A word as people write it: ``galore(ip)`` marks where an adjective stands."""
    return word.partition("(")[0].replace("_", " ")


def _files(folder: Path | None) -> Path:
    return WORDNET.found(FOLDER if folder is None and FOLDER.is_dir() else folder)[1]


def wordnet(
    folder: Path | None, preprocess: object = None, seed: int = 0
) -> dict[str, LabelledTexts]:
    """Definitions of nouns by category; ``verb``, ``adjective`` and ``adverb`` are of no class.

    Args:
        folder: holds the data files; Debian's by default.
        preprocess: of images; not used.
        seed: of the split of the nouns.

    Raises:
        BellaError: files are missing or damaged.
    """
    root = _files(folder)
    senses = read_senses(root / FILES["noun"])
    classes = tuple(name for kind, name in NAMES if kind == "noun")
    index = {name: place for place, name in enumerate(classes)}
    known = {sense.definition for sense in senses}
    unknown = [sense.category for sense in senses if sense.category not in index]
    if unknown:
        raise WORDNET.damaged(root / FILES["noun"], f"it has the category {unknown[0]}")
    texts = LabelledTexts(
        (sense.definition for sense in senses), (index[s.category] for s in senses), classes
    )
    parts = texts.split(FRACTIONS, seed)
    for kind in ("verb", "adjective", "adverb"):
        others = [s.definition for s in read_senses(root / FILES[kind])]
        strange = [text for text in others if text not in known]
        parts[kind] = LabelledTexts(strange, [0] * len(strange), classes).of_no_class(classes)
    return parts


def wordnet_choice(
    folder: Path | None, preprocess: object = None, seed: int = 0
) -> dict[str, Questions]:
    """A definition and four words of one category, one of which it belongs to.

    The wrong words are drawn among those of other senses in the category, and the places of the
    right ones too; both are the same for every seed, which decides the split of the nouns alone.

    Args:
        folder: holds the data files; Debian's by default.
        preprocess: of images; not used.
        seed: of the split of the nouns.

    Raises:
        BellaError: files are missing or damaged, or too small to draw from.
    """
    root = _files(folder)
    nouns, verbs, adjectives = (
        _asked(read_senses(root / FILES[kind])) for kind in ("noun", "verb", "adjective")
    )
    return nouns.split(FRACTIONS, seed) | {"verb": verbs, "adjective": adjectives}


def _asked(senses: list[Sense]) -> Questions:
    """A question for each sense whose category has enough other words."""
    words: dict[str, list[str]] = {}
    for sense in senses:
        words.setdefault(sense.category, []).append(sense.words[0])
    known = {category: set(others) for category, others in words.items()}
    generator = torch.Generator().manual_seed(0)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    questions, options, labels = [], [], []
    for sense in senses:
        others = words[sense.category]
        if len(known[sense.category]) - len(known[sense.category] & set(sense.words)) < CHOICES - 1:
            continue
        wrong: list[str] = []
        while len(wrong) < CHOICES - 1:
            word = others[draw(len(others))]
            if word not in sense.words and word not in wrong:
                wrong.append(word)
        place = draw(CHOICES)
        questions.append(sense.definition)
        options.append((*wrong[:place], sense.words[0], *wrong[place:]))
        labels.append(place)
    if not questions:
        raise BellaError("No category of these files of WordNet has words enough to draw from.")
    return Questions(questions, options, labels, list("ABCD"))


PLACE = (
    "apt install wordnet-base (6.5 MB), or https://wordnet.princeton.edu/download (WordNet 3.0, "
    "the folder dict)"
)
SOURCE = "Miller, WordNet: a lexical database for English, CACM 38, 1995; WordNet licence"
FORMS = {"data files": tuple(FILES.values())}

WORDNET = DataSet(
    "wordnet",
    "WordNet's definitions",
    "text",
    "definitions of 82,115 senses of nouns in 26 categories, and of other words",
    {
        "train": "60 percent of the nouns",
        "validation": "15 percent",
        "test": "25 percent, all drawn by class",
        "verb": "definitions of verbs, which are of no class",
        "adjective": "definitions of adjectives, likewise",
        "adverb": "definitions of adverbs, likewise",
    },
    PLACE,
    SOURCE,
    wordnet,
    FORMS,
)

WORDNET_CHOICE = DataSet(
    "wordnet-choice",
    "WordNet's words",
    "question",
    "a definition and four words of one category, one of them right",
    {
        "train": "60 percent of the nouns",
        "validation": "15 percent",
        "test": "25 percent, all drawn by place of the right word",
        "verb": "the same of verbs",
        "adjective": "the same of adjectives",
    },
    PLACE,
    SOURCE,
    wordnet_choice,
    FORMS,
)
