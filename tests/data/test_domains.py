"""Domains of a user's own data: some are split, the others stay whole."""

from __future__ import annotations

import pytest
from own_images import write_images
from PIL import Image

import bella
from bella.data import Preprocess, open_domains, open_images

PLAIN = Preprocess(32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("domains")
    for seed, name in enumerate(("clinic", "lab", "ward")):
        write_images(root / "images" / name, count=5 + seed, seed=seed)
    lines = [
        f"{path.relative_to(root)},{path.parent.name},{path.parent.parent.name}"
        for path in sorted(root.rglob("*.png"))
    ]
    (root / "images.csv").write_text("path,label,Site\n" + "\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("form", ["images", "images.csv"])
def test_training_domains_are_split_and_the_others_are_whole(root, form):
    parts = open_domains(root / form, PLAIN, ["ward", "clinic"])
    assert list(parts) == ["train", "validation", "test", "lab"]
    assert len(parts["lab"]) == 12
    assert sum(len(parts[name]) for name in ("train", "validation", "test")) == 24
    for name, part in parts.items():
        assert part.classes == ("day", "night")
        domains = {path.parent.parent.name for path in part.paths}
        assert domains <= ({"lab"} if name == "lab" else {"ward", "clinic"})
        for path, label in zip(part.paths, part.labels, strict=True):
            assert path.parent.name == part.classes[label]
    again = open_domains(root / form, PLAIN, ["ward", "clinic"])
    assert again["test"].paths == parts["test"].paths
    other = open_domains(root / form, PLAIN, ["ward", "clinic"], seed=1)
    assert other["test"].paths != parts["test"].paths


@pytest.mark.parametrize("form", ["images", "images.csv"])
def test_what_cannot_be_is_refused(root, form):
    for train, words in (
        (["lob"], "near are 'lab'"),
        ([], "Name a domain"),
        (["clinic", "lab", "ward"], "leave one"),
    ):
        with pytest.raises(bella.BellaError, match=words):
            open_domains(root / form, PLAIN, train)


def test_tables_without_domains_and_foreign_classes_are_refused(root, tmp_path):
    table = root / "none.csv"
    table.write_text((root / "images.csv").read_text().replace("Site", "note"))
    with pytest.raises(bella.BellaError, match="no column called domain"):
        open_domains(table, PLAIN, ["lab"])
    lines = (root / "images.csv").read_text().splitlines()
    table.write_text("\n".join([*lines[:-1], lines[-1].removesuffix("ward")]))
    with pytest.raises(bella.BellaError, match=f"Line {len(lines)} .* has no domain"):
        open_domains(table, PLAIN, ["lab"])
    table.write_text("\n".join([*lines[:-1], lines[-1].replace(",night,", ",dusk,")]))
    with pytest.raises(bella.BellaError, match="the class 'dusk', which no training domain has"):
        open_domains(table, PLAIN, ["lab"])
    write_images(tmp_path / "test", count=2)
    write_images(tmp_path / "lab", count=4)
    with pytest.raises(bella.BellaError, match="called 'test'"):
        open_domains(tmp_path, PLAIN, ["lab"])
    with pytest.raises(bella.BellaError, match="neither a folder nor a CSV"):
        open_domains(tmp_path / "x", PLAIN, ["lab"])


def test_folders_that_look_like_domains_are_warned_of(root):
    with pytest.warns(UserWarning, match="each holds the same folders .*--train-domains clinic"):
        images = open_images(root / "images", PLAIN)
    assert images.classes == ("clinic", "lab", "ward")


def test_folders_within_classes_are_nothing_to_warn_of(tmp_path):
    for place in ("cat/left", "cat/right", "dog/left"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "0.png")
    assert open_images(tmp_path, PLAIN).classes == ("cat", "dog")
