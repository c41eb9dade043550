"""Words by their definitions: a language model chooses among four words of one category.

Nouns train and test; verbs and adjectives are the shift, and have right answers too. The form (from
a question's text to the likelihood of each option's) is that of the multiple choice that BLoB, TFB,
ScalaBL and Laplace-LoRA report on.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bella.data.choices import TokenisedQuestions
from bella.data.sets import SETS
from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Place, Task, Words, draw, whole
from bella.experiments.tasks.texts import START
from bella.models.chooser import Chooser
from bella.models.language import OpenedLanguage, open_language
from bella.models.opened import Defaults

NETWORK = "smollm2-135m-instruct"
COUNTS = {"train": 480, "validation": 160}
"""Definitions that each seed draws."""
LONGEST = 30
"""Tokens of a question with an option at most. 14% of the nouns' definitions are longer, 0.5% of
the verbs' and 1.3% of the adjectives', and are left out."""


def wordnet_choice_task(
    folder: str | Path | None = None, nouns: int = 6_400, tested: int = 400, shifted: int = 300
) -> Task:
    """WordNet multiple choice with SmolLM2: 480 definitions of nouns to train on.

    Each seed draws its training and validation definitions anew from the same 6,400; the test part
    is the same for all.

    Args:
        folder: of WordNet's data files; Debian's by default.
        nouns: definitions of nouns to draw from.
        tested: definitions of nouns in the test part.
        shifted: definitions of verbs, and as many of adjectives.
    """
    tokenizer = open_language(NETWORK).tokenizer
    parts = SETS["wordnet-choice"].read(None if folder is None else Path(folder), None, 0)
    # Twice as many are looked at, and of those short ones taken.
    pools = {
        name: at_most(count, short(TokenisedQuestions(at_most(2 * count, part), tokenizer, prompt)))
        for name, part, count in (
            ("noun", parts["train"], nouns),
            ("test", parts["test"], tested),
            ("verb", parts["verb"], shifted),
            ("adjective", parts["adjective"], shifted),
        )
    }

    @cache
    def split(seed: int) -> dict[str, Place]:
        own = draw("noun", pools["noun"].labels, COUNTS, seed)
        return own | {name: whole(name, pools[name]) for name in ("test", "verb", "adjective")}

    return Task(
        "wordnet-choice",
        "WordNet multiple choice (nouns), SmolLM2-135M-Instruct (dequantised from 4 bits)",
        open_chooser,
        pools,
        split,
        {"shift": "verb", "adjective": "adjective"},
        {"epochs": 1, "batch_size": 8, "learning_rate": 2e-3},
        START,
        rank=8,
        words=Words(
            examples="definitions",
            noticing={"shift": "noticing verbs", "adjective": "noticing adjectives"},
        ),
    )


def prompt(definition: str) -> str:
    """What stands before a word."""
    return f"Definition: {definition}\nWord:"


def short(questions: TokenisedQuestions) -> TokenisedQuestions:
    """The questions that are no longer than `LONGEST`, padded to the longest of them."""
    kept = [i for i in range(len(questions)) if questions.length(i) <= LONGEST]
    return TokenisedQuestions(questions.select(kept), questions.tokenizer, prompt)


def open_chooser(seed: int) -> OpenedLanguage:
    """The language model as a network of four logits; it has no fresh weights."""
    opened = open_language(NETWORK)
    targets = tuple(rf"language\.{name}" for name in opened.defaults.target_modules)
    return opened._replace(network=Chooser(opened.network), defaults=Defaults(targets, ()))
