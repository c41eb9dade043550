"""Images and tables as people hand them over: moving pictures, odd names, links, far paths."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
from PIL import Image

from bella import data
from bella.data import Preprocess
from bella.data.images import load_image
from bella.errors import BellaError
from bella.files import write_json

PIXELS = Preprocess(4)


def write(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (level, level, level)).save(path)
    return path


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png", ".tif"])
def test_of_a_moving_picture_the_first_frame_is_taken(tmp_path, ending):
    frames = [Image.new("RGB", (6, 4), (level, level, level)) for level in (200, 100, 0)]
    options = {"lossless": True} if ending == ".webp" else {}
    frames[0].save(tmp_path / f"a{ending}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a{ending}") as opened:
        assert opened.n_frames == 3
    assert np.unique(load_image(tmp_path / f"a{ending}")).tolist() == [200]


@pytest.mark.parametrize("kept", [30, 60, -3])
@pytest.mark.parametrize("ending", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif"])
def test_a_file_that_is_cut_short_is_refused_by_name(tmp_path, ending, kept):
    noise = Image.effect_noise((40, 30), 60).convert("RGB")
    noise.save(tmp_path / f"whole{ending}")
    content = (tmp_path / f"whole{ending}").read_bytes()
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(content[: len(content) * kept // 100 if kept > 0 else kept])
    whole = load_image(tmp_path / f"whole{ending}")
    # What is gone may be no pixel: a closing mark.
    complete = kept < 0 and ending in (".png", ".gif", ".webp", ".tif", ".jpg")
    with (
        contextlib.suppress(BellaError)
        if complete
        else pytest.raises(BellaError, match=rf"cut\{ending} cannot be read as an image")
    ):
        assert np.array_equal(load_image(cut), whole)


NAMES = ("früh", "夜", "🌙 moon", "a, b", 'say "so"', "-x", "[red]")


def test_classes_and_files_of_any_name(tmp_path):
    for i, name in enumerate(NAMES):
        write(tmp_path / "d" / name / f"{name} {i}.png", i)
    images = data.open_images(tmp_path / "d", PIXELS)
    assert set(images.classes) == set(NAMES)
    assert len(images) == len(NAMES)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_quotes_marks_and_line_ends_of_a_table(tmp_path, mark, end):
    rows = ["path,label"]
    for i, name in enumerate(NAMES):
        write(tmp_path / f"{name} {i}.png")
        cells = (f"{name} {i}.png", name)
        rows.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
    (tmp_path / "t.csv").write_bytes((mark + end.join(rows) + end).encode())
    images = data.open_images(tmp_path / "t.csv", PIXELS)
    assert [images.classes[label] for label in images.labels] == list(NAMES)
    assert images[2][0].shape == (3, 4, 4)


# ---------------------------------------------------------------- paths and links


def test_a_table_may_name_images_elsewhere_and_nothing_but_images(tmp_path):
    """Paths are followed wherever the reader may read; what is there is decoded or refused."""
    outside = write(tmp_path / "elsewhere" / "a.png")
    secret = tmp_path / "secret.png"
    secret.write_text("word:x:0:0")
    table = tmp_path / "d" / "t.csv"
    table.parent.mkdir()
    table.write_text(f"path,label\n../elsewhere/a.png,a\n{secret},b\n")
    images = data.open_images(table, PIXELS)
    assert images[0][0].shape == (3, 4, 4)
    assert images.paths[0].samefile(outside)
    with pytest.raises(BellaError, match=r"secret\.png cannot be read as an image") as refused:
        images[1]
    assert "x:0:0" not in str(refused.value)
    assert sorted(path.name for path in table.parent.iterdir()) == ["t.csv"]


@pytest.mark.filterwarnings("ignore:.* are left out")
def test_linked_images_are_read_and_linked_folders_are_not(tmp_path):
    outside = write(tmp_path / "elsewhere" / "b.png", 9)
    folder = tmp_path / "d"
    write(folder / "a" / "1.png")
    write(folder / "b" / "1.png")
    (folder / "a" / "linked.png").symlink_to(outside)
    (folder / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "round").symlink_to(folder)
    with pytest.warns(UserWarning, match="2 linked folder"):  # counted
        images = data.open_images(folder, PIXELS)
    assert [path.name for path in images.paths] == ["1.png", "linked.png", "1.png"]
    assert float(images[1][0].mean()) != float(images[0][0].mean())
    (folder / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "a" / "passwd.png").symlink_to("/etc/passwd")
    with pytest.warns(UserWarning, match="2 of 5 images cannot be read and are skipped"):
        images = data.open_images(folder, PIXELS, on_bad_image="skip")
    assert len(images) == 3
    assert len(images.skipped) == 2


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    os.symlink(victim, tmp_path / "run" / "run.json")
    write_json(tmp_path / "run" / "run.json", {"a": 1})
    assert victim.read_text() == "mine"
    assert not (tmp_path / "run" / "run.json").is_symlink()


def test_what_was_skipped_is_counted_once_however_the_data_are_divided(tmp_path):
    for name in "ab":
        for i in range(8):
            write(tmp_path / "d" / name / f"{i}.png", i)
    (tmp_path / "d" / "a" / "3.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 16"):
        parts = data.splits(tmp_path / "d", PIXELS, on_bad_image="skip")
    assert len(frozenset().union(*(part.skipped for part in parts.values()))) == 1
    assert all(part.select([0]).skipped == part.skipped for part in parts.values())
