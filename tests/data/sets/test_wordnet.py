import pytest

from bella.data import LabelledTexts, Preprocess, Questions, open_data
from bella.data.sets.wordnet import NAMES, read_senses
from bella.errors import BellaError

NONE = Preprocess(8)
LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n"


def line(number, file, kind, words, gloss):
    """A sense as WordNet's data files have it (wndb(5WN)); the count of words is hexadecimal."""
    fields = " ".join(f"{word} {i:x}" for i, word in enumerate(words))
    head = f"{number:08d} {file:02d} {kind} {len(words):02x} {fields}"
    return f"{head} 001 @ 00001740 n 0000 | {gloss}\n"


@pytest.fixture
def folder(tmp_path):
    """Animals (file 5), food (13); verbs of motion (38); adjectives (0) and adverbs (2)."""
    animals = [
        line(i, 5, "n", [f"beast_{i}", "creature"], f'a kind of beast; number {i}; "it runs"')
        for i in range(12)
    ]
    food = [line(100 + i, 13, "n", [f"dish_{i}"], f"a meal of {i} courses  ") for i in range(12)]
    verbs = [line(200 + i, 38, "v", [f"run_{i}"], f"move {i} times") for i in range(6)]
    verbs.append(line(300, 38, "v", ["dine"], "a meal of 3 courses"))  # a noun's definition too
    adjectives = [line(400 + i, 0, "a", [f"big_{i}(ip)"], f"of size {i}") for i in range(5)]
    adverbs = [line(500, 2, "r", ["fast"], "with speed")]
    for name, lines in (
        ("noun", animals + food),
        ("verb", verbs),
        ("adj", adjectives),
        ("adv", adverbs),
    ):
        (tmp_path / f"data.{name}").write_text(LICENCE + "".join(lines))
    return tmp_path


def test_the_categories_are_the_45_of_lexnames():
    assert len(NAMES) == 45
    places = {0: ("adj", "all"), 2: ("adv", "all"), 3: ("noun", "Tops"), 28: ("noun", "time")}
    places |= {29: ("verb", "body"), 43: ("verb", "weather"), 44: ("adj", "ppl")}
    assert {number: NAMES[number] for number in places} == places


def test_definitions_by_category(folder):
    parts = open_data("wordnet", NONE, folder=folder)
    assert list(parts) == ["train", "validation", "test", "verb", "adjective", "adverb"]
    assert all(isinstance(part, LabelledTexts) for part in parts.values())
    assert sum(len(parts[name]) for name in ("train", "validation", "test")) == 24
    assert len(parts["train"].classes) == 26
    for name in ("train", "validation", "test"):
        for text, label in (parts[name][i] for i in range(len(parts[name]))):
            assert parts[name].classes[label] == ("animal" if "beast" in text else "food")
            assert "runs" not in text
            assert text == text.strip()
    assert parts["verb"].texts == [f"move {i} times" for i in range(6)]
    assert set(parts["verb"].labels) == {-1}
    two = open_data("wordnet", NONE, folder=folder, classes=["food", "animal"])
    assert two["train"].classes == two["verb"].classes == ("food", "animal")
    assert two["verb"].labels == [-1] * 6
    assert {two["test"].classes[label] for label in two["test"].labels} == {"food", "animal"}


def test_words_for_definitions(folder):
    parts = open_data("wordnet-choice", NONE, folder=folder)
    assert list(parts) == ["train", "validation", "test", "verb", "adjective"]
    assert all(isinstance(part, Questions) for part in parts.values())
    for name, part in parts.items():
        assert part.classes == ("A", "B", "C", "D")
        for i in range(len(part)):
            (definition, words), label = part[i]
            assert len(set(words)) == 4
            number = definition.split()[-1 if "number" in definition else -2]
            if name in ("train", "validation", "test"):
                kind = "beast" if "beast" in definition else "dish"
                assert words[label] == f"{kind} {number}"
                assert {word.split()[0] for word in words} == {kind}
    assert all("(" not in word for words in parts["adjective"].options for word in words)
    again = open_data("wordnet-choice", NONE, folder=folder, seed=1)
    assert again["verb"].options == parts["verb"].options
    assert again["test"].questions != parts["test"].questions


def test_wrong_files_are_named(folder):
    path = folder / "data.noun"
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(BellaError, match=r"data.noun is damaged, or not whole"):
        read_senses(path)
    path.write_text(whole + "12 and so on\n")
    with pytest.raises(BellaError, match=r"data.noun is damaged, or not whole \(line 26"):
        open_data("wordnet", NONE, folder=folder)
    path.unlink()
    with pytest.raises(BellaError, match=r"a part of WordNet's .*data.noun missing. Get it: apt"):
        open_data("wordnet", NONE, folder=folder)
