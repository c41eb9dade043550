"""Rows of anybody's files."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from set_files import write_reviews, write_wordnet

import bella
from bella.data.records import divided, read_records

ROWS = [{"review": 'good, "very"', "stars": "05"}, {"review": "two\nlines", "stars": "NA"}]


def written(folder, kind):
    path = folder / f"rows.{kind}"
    if kind in ("csv", "tsv"):
        text = 'review,stars\n"good, ""very""",05\n"two\nlines",NA\n'
        path.write_text(
            text if kind == "csv" else 'review\tstars\n"good, ""very"""\t05\n"two\nlines"\tNA\n'
        )
    elif kind == "jsonl":
        path.write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path = folder / "saved"
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "copy"])
def test_cells_are_what_stands_there(tmp_path, kind):
    (records,) = read_records(written(tmp_path, kind)).values()
    assert list(records.rows) == ROWS  # "05" is no 5, and NA no gap
    assert records.columns == ("review", "stars")


def test_classes_of_a_data_set_are_their_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    parts = {"train": datasets.Dataset.from_dict(rows, features=features)}
    parts["test"] = parts["train"]
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    found = read_records(f"hf:{tmp_path / 'saved'}")
    assert sorted(found) == ["test", "train"]
    assert found["test"].column("label") == ["yes", "no", -1]


def test_a_column_of_parts_divides_the_rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,Split\na,train\nb,val\nc,TEST\nd,train\n")
    parts = read_records(path)
    assert {p: r.column("text") for p, r in parts.items()} == {
        "train": ["a", "d"],
        "validation": ["b"],
        "test": ["c"],
    }
    whole = divided(parts, None, 0)
    assert {p: r.column("text") for p, r in whole.items()} == {
        p: r.column("text") for p, r in parts.items()
    }


def test_missing_parts_are_split_off_train(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,y\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    read = read_records(path)
    labels = [int(cell) for cell in read["train"].column("y")]
    parts = divided(read, labels, 3)
    assert [len(p) for p in parts.values()] == [24, 6, 10]
    for part in parts.values():
        assert part.column("y").count("0") == len(part) // 2
    again = divided(read, labels, 3)
    assert all(list(parts[p].rows) == list(again[p].rows) for p in parts)
    texts = sorted(text for part in parts.values() for text in part.column("text"))
    assert texts == sorted(read["train"].column("text"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label\nx\n", "as many cells"),
        ("a.csv", "text,label\nx,y,z\n", "as many cells"),
        ("a.csv", "a,a\nx,y\n", "two columns have one name"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", b"text\n\xff\xfe", "UTF-8"),
        ("a.jsonl", '{"a": 1}\n[2]\n', "Line 2"),
        ("a.jsonl", '{"a": 1', "JSON lines"),
        ("a.parquet", "no", "parquet"),
        ("a.txt", "x", "csv, .tsv"),
        ("a.csv", "text,split\nx,dev\n", "train, val or test"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(bella.BellaError, match=words) as error:
        read_records(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(bella.BellaError, match="no file here"):
        read_records("gone.csv")


def test_a_wrong_column_lists_those_that_are_there(tmp_path):
    (records,) = read_records(written(tmp_path, "csv")).values()
    with pytest.raises(bella.BellaError, match="columns are review, stars"):
        records.column("text")
    with pytest.raises(bella.BellaError, match="columns are review, stars; say --column text=NAME"):
        records.find("text", None, ("text", "sentence"))
    assert records.find("label", None, ("Label", "stars")) == "stars"


@pytest.mark.filterwarnings("ignore:.*the published")
def test_a_set_by_name_is_read_with_its_parts_and_shifts(tmp_path):
    write_reviews(tmp_path)
    found = read_records("drug-reviews", folder=tmp_path, limit=30)
    assert list(found) == ["train", "validation", "test", "birth-control"]
    assert len(found["train"]) == 30
    assert found["train"].columns == ("text", "label")
    assert set(found["test"].column("label")) <= {"negative", "neutral", "positive"}
    whole = divided(found, None, 0)
    assert {name: part.rows for name, part in whole.items()} == {
        name: part.rows for name, part in found.items()
    }
    two = read_records("drug-reviews", folder=tmp_path, classes=["positive", "negative"])
    assert set(two["train"].column("label")) == {"positive", "negative"}


def test_questions_by_name_and_what_is_of_no_class(tmp_path):
    write_wordnet(tmp_path)
    found = read_records("wordnet-choice", folder=tmp_path)
    row = found["train"].rows[0]
    assert len(row["options"]) == 4
    assert row["answer"] in row["options"]
    assert set(read_records("wordnet", folder=tmp_path)["verb"].column("label")) == {None}


def test_what_is_for_sets_by_name_is_refused_of_files(tmp_path):
    path = written(tmp_path, "csv")
    with pytest.raises(bella.BellaError, match="limit is for a data set by name"):
        read_records(path, limit=3, seed=1)
    with pytest.raises(bella.BellaError) as told:
        read_records(path, limit=3)
    assert "digits" not in str(told.value)  # which has images
    assert "drug-reviews" in str(told.value)
    with pytest.raises(bella.BellaError, match="examples of the kind 'image'"):
        read_records("digits")
