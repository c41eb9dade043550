"""Images of other kinds: with labels where all are of the classes, and without otherwise."""

from __future__ import annotations

import pytest
from own_images import CLASSES, write_images, write_table

import bella
from bella.data import Preprocess, open_other

PLAIN = Preprocess(32)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("other") / "images", count=3)


def test_folders_and_tables_of_known_classes_have_labels(images, tmp_path):
    assert open_other(images, PLAIN, CLASSES).labels == [0, 0, 0, 1, 1, 1]
    # The network's order of classes, and more of them than are here.
    assert open_other(images, PLAIN, ("night", "dusk", "day")).labels == [2, 2, 2, 0, 0, 0]
    table = write_table(images.parent / "images.csv", images)
    assert open_other(table, PLAIN, CLASSES).labels == [0, 0, 0, 1, 1, 1]
    assert open_other(images, PLAIN, CLASSES).classes == CLASSES


def test_others_have_none(images):
    for foreign in (images / "day", images):
        found = open_other(foreign, PLAIN, ("cat", "day"))
        assert set(found.labels) == {-1}
        assert found.classes == ("cat", "day")
        assert found[0][0].shape == (3, 32, 32)
    table = write_table(images.parent / "images.csv", images)
    assert open_other(table, PLAIN, ("cat", "day")).labels == [-1] * 6


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(bella.BellaError, match="neither a folder nor a CSV"):
        open_other(tmp_path / "nowhere", PLAIN, CLASSES)
    with pytest.raises(bella.BellaError, match="no image"):
        open_other(tmp_path, PLAIN, CLASSES)
