import pytest
from set_files import save_picture

from bella.data import Preprocess, open_data
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)
THINGS = {0: "aircraft_carrier", 7: "The_Eiffel_Tower", 344: "zebra"}
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


def write_domain(root, lists, domain, counts=(5, 2)):
    lists.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "test"), counts, strict=True):
        lines = []
        for label, thing in THINGS.items():
            for i in range(count):
                name = f"{domain}/{thing}/{domain}_{label:03d}_{part}{i}.jpg"
                save_picture(root / name, label + i)
                lines.append(f"{name} {label}\n")
        (lists / f"{domain}_{part}.txt").write_text("".join(lines))


@pytest.mark.parametrize("where", ["", "splits"])
def test_train_on_photographs_and_test_on_the_other_domains(tmp_path, where):
    for domain in ("real", "sketch", "clipart"):
        write_domain(tmp_path, tmp_path / where, domain)
    parts = open_data("domainnet", PIXELS, folder=tmp_path)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 12,
        "validation": 3,
        "test": 6,
        "clipart": 6,
        "sketch": 6,
    }
    for name, part in parts.items():
        assert part.classes == tuple(THINGS.values())
        assert part.labels == [part.classes.index(path.parent.name) for path in part.paths]
        assert {path.parents[1].name for path in part.paths} == {
            "real" if name in ("train", "validation", "test") else name
        }
    assert parts["sketch"][0][0].shape == (3, 8, 8)
    other = {"domain": "sketch", "shifts": ["real"]}
    parts = open_data("domainnet", PIXELS, folder=tmp_path, options=other)
    assert list(parts) == ["train", "validation", "test", "real"]


def test_wrong_and_partial_copies_are_named(tmp_path):
    write_domain(tmp_path, tmp_path, "real")

    def refused(message, **options):
        with pytest.raises(BellaError, match=message):
            open_data("domainnet", PIXELS, folder=tmp_path, options=options)

    with pytest.warns(
        UserWarning, match="15 real train images and the published DomainNet 120,906"
    ):
        open_data("domainnet", PIXELS, folder=tmp_path)
    refused("'photo' is no domain: choose .*'real'", domain="photo")
    refused(r"The list .*sketch_test.txt is missing. Get it: http://ai.bu.edu", shifts=["sketch"])
    next((tmp_path / "real" / "zebra").glob("*test1.jpg")).unlink()
    refused(r"1 of the 6 images in .*real_test.txt are missing, the first is .*344_test1.jpg")
    text = (tmp_path / "real_test.txt").read_text()
    (tmp_path / "real_test.txt").write_text(text.replace("zebra", "unicorn"))
    refused(r"of the 6 images in .*real_test.txt are missing")
    (tmp_path / "real_test.txt").write_text("real/../../secret.jpg 0\n")
    refused(r"real_test.txt is damaged, or not whole \(line 1")
    (tmp_path / "real_test.txt").write_text(text[:30])
    refused(r"real_test.txt is damaged, or not whole \(line 1")
    for path in tmp_path.glob("*_test.txt"):
        path.unlink()
    refused(r"a part of DomainNet \(lists\): \*_test.txt missing")


def test_one_class_of_two_names_is_refused(tmp_path):
    write_domain(tmp_path, tmp_path, "real")
    text = (tmp_path / "real_train.txt").read_text()
    (tmp_path / "real_train.txt").write_text(text.replace(".jpg 7\n", ".jpg 0\n"))
    with pytest.raises(BellaError, match="0 stands for aircraft_carrier and for The_Eiffel_Tower"):
        open_data("domainnet", PIXELS, folder=tmp_path)
