"""Pictures, folders and tables as people have them: right, or refused, and never without a word."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bella import data
from bella.data import Preprocess, load_image, splits
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)


def write(path, colour=(10, 20, 30), size=(9, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("hidden", [(0, 0, 0, 0), (255, 0, 0, 0), (9, 200, 7, 0)])
@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_what_is_transparent_is_white_whatever_lies_beneath(tmp_path, hidden, ending):
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    Image.new("RGBA", (8, 8), hidden).save(path, **options)
    assert (np.asarray(load_image(path)) == 255).all()
    assert PIXELS(Image.open(path)).eq(255).all()  # also for pictures that a caller opened


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (2, 2), (100, 0, 200, 51)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (224, 204, 244)
    Image.new("LA", (2, 2), (100, 51)).save(tmp_path / "b.png")
    assert load_image(tmp_path / "b.png").getpixel((0, 0)) == (224, 224, 224)


@pytest.mark.parametrize(
    ("mode", "colour", "key"), [("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3)), ("P", 0, 0)]
)
def test_a_colour_that_is_declared_transparent_is_white(tmp_path, mode, colour, key):
    Image.new(mode, (3, 3), colour).save(tmp_path / "a.png", transparency=key)
    assert load_image(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)


def test_a_deep_grey_that_is_declared_transparent_is_white(tmp_path):
    deep = Image.fromarray(np.array([[7, 256 * 100]], dtype=np.uint16))
    deep.save(tmp_path / "a.png", transparency=7)
    assert np.asarray(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 100]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("seed", range(40))
def test_broken_exif_and_broken_pixels_never_end_in_another_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112], exif[0x010E], exif[0x9003] = 6, "words", "2020:01:01 00:00:00"
    held = io.BytesIO()
    image.save(held, ("JPEG", "PNG", "TIFF", "WEBP", "GIF")[seed % 5], exif=exif)
    for _ in range(40):
        content = bytearray(held.getvalue())
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(min(len(content), 200))] ^= 1 << rng.integers(8)
        (tmp_path / "a.jpg").write_bytes(content)
        with warnings.catch_warnings(), contextlib.suppress(BellaError):
            warnings.simplefilter("ignore")
            assert load_image(tmp_path / "a.jpg").mode == "RGB"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_where_exif_cannot_be_read_the_picture_stays_as_it_is_stored(tmp_path):
    image = Image.new("RGB", (6, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    content = (tmp_path / "a.jpg").read_bytes()
    place = content.index(b"Exif\0\0") + 6
    broken = content[: place + 4] + b"\xff\xff\xff\x7f" + content[place + 8 :]
    (tmp_path / "a.jpg").write_bytes(broken)
    assert load_image(tmp_path / "a.jpg").size == (6, 3)


def huge_png(path, side):
    """A picture of side x side black or white pixels in some kilobytes."""

    def chunk(name, content):
        sealed = name + content
        return struct.pack(">I", len(content)) + sealed + struct.pack(">I", zlib.crc32(sealed))

    row = b"\0" * (1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    huge_png(tmp_path / "a.png", 13_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(BellaError, match=r"13000x13000 pixels.*MAX_IMAGE_PIXELS"):
        load_image(tmp_path / "a.png")


def test_the_limit_is_pil_s_own(tmp_path, monkeypatch):
    huge_png(tmp_path / "a.png", 100)
    load_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9999)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(BellaError, match="9,999"):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    load_image(tmp_path / "a.png")


def test_pipes_devices_and_formats_that_start_programs_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, said in (
        ("pipe.png", "is a pipe"),
        ("folder.png", "is a folder"),
        ("eps.png", "cannot be read as an image"),
    ):
        with pytest.raises(BellaError, match=said):
            load_image(tmp_path / name)


# ---------------------------------------------------------------- bad images


@pytest.fixture
def half_bad(tmp_path):
    for name in "ab":
        for i in range(6):
            write(tmp_path / "d" / name / f"{i}.png")
    (tmp_path / "d" / "a" / "3.png").write_bytes(b"no image")
    (tmp_path / "d" / "b" / "0.png").write_bytes(b"")
    rows = [f"d/{name}/{i}.png,{name}\n" for name in "ab" for i in range(6)]
    (tmp_path / "d.csv").write_text("".join(rows))
    return tmp_path


@pytest.mark.parametrize("name", ["d", "d.csv"])
def test_bad_images_stop_or_are_skipped_and_counted(half_bad, name):
    images = data.open_images(half_bad / name, PIXELS)
    assert len(images) == 12
    with pytest.raises(BellaError, match=r"3\.png cannot be read"):
        images[3]
    with pytest.warns(UserWarning, match=r"2 of 12 images cannot be read and are skipped.*3\.png"):
        images = data.open_images(half_bad / name, PIXELS, on_bad_image="skip")
    assert images.labels == [0] * 5 + [1] * 5
    assert torch.stack([x for x, _ in images]).shape == (10, 3, 8, 8)
    with pytest.warns(UserWarning, match="2 of 12"):
        parts = splits(half_bad / name, PIXELS, on_bad_image="skip")
    assert sum(map(len, parts.values())) == 10
    with pytest.warns(UserWarning, match="2 of 12"):
        assert len(data.ImageList(half_bad / "d", PIXELS, "skip")) == 10
    with pytest.raises(BellaError, match="'stop' or 'skip'"):
        data.open_images(half_bad / name, PIXELS, on_bad_image="ignore")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_class_that_would_vanish_is_not_skipped(half_bad):
    for path in (half_bad / "d" / "b").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(BellaError, match="None of the images of class 'b'"):
        data.open_images(half_bad / "d", PIXELS, on_bad_image="skip")
    with pytest.raises(BellaError, match="none is left"):
        data.ImageList(half_bad / "d" / "b", PIXELS, "skip")


# ---------------------------------------------------------------- folders


def test_images_at_any_depth_and_of_all_usual_endings_are_used(tmp_path):
    for name in "ab":
        write(tmp_path / name / "1.png")
        write(tmp_path / name / "session" / "day" / "2.png")
        for ending in (".gif", ".jfif", ".JPE", ".ppm"):
            write(tmp_path / name / f"3{ending}")
    images = data.ImageFolder(tmp_path, PIXELS)
    assert len(images) == 12
    assert images.labels == [0] * 6 + [1] * 6


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path / "1.png")
    write(tmp_path / ".thumbnails" / "deep" / "1.png")
    write(tmp_path / "._1.png")
    (tmp_path / "a.heic").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "linked").symlink_to(tmp_path)
    said = r"2 hidden images and 3 files .*\(1 .heic, 1 .txt, 1 linked folder\)"
    with pytest.warns(UserWarning, match=said):
        assert len(data.ImageList(tmp_path, PIXELS)) == 1


def test_a_class_that_is_called_train_is_not_taken_for_the_part(tmp_path):
    for name in ("bus", "car", "train/steam", "train/diesel"):
        for i in range(9):
            write(tmp_path / name / f"{i}.png")
    with pytest.raises(BellaError, match="is train a class or the training part"):
        splits(tmp_path, PIXELS)
    for i in range(3):
        for name in ("steam", "diesel"):
            write(tmp_path / "test" / name / f"{i}.png")
    with pytest.warns(UserWarning, match="bus, car beside the parts train, test"):
        assert splits(tmp_path, PIXELS)["train"].classes == ("diesel", "steam")


def test_two_folders_for_one_part_are_refused(tmp_path):
    for part in ("train", "val", "validation"):
        for name in "ab":
            write(tmp_path / part / name / "1.png")
    with pytest.raises(BellaError, match="validation and val, which are the same part"):
        splits(tmp_path, PIXELS)


# ---------------------------------------------------------------- tables


@pytest.fixture
def numbered(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.png", (40 * i,) * 3)
    return tmp_path


def table(folder, text, classes=None):
    (folder / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return data.ImageTable(folder / "t.csv", PIXELS, classes)


def test_one_unknown_label_does_not_renumber_the_others(numbered):
    classes = table(numbered, "0.png,1\n1.png,2\n2.png,3\n").classes
    for unknown in ("0", "4", "x"):
        with pytest.raises(BellaError, match=f"label '{unknown}', which is none of the 3"):
            table(numbered, f"3.png,1\n4.png,2\n5.png,{unknown}\n", classes)
    # All of them positions among the classes: still the names, of which 0 is none.
    with pytest.raises(BellaError, match="label '0'"):
        table(numbered, "3.png,0\n", classes)
    assert table(numbered, "3.png,3\n4.png,1\n", classes).labels == [2, 0]
    assert table(numbered, "3.png,0\n4.png,1\n", ("cat", "dog")).labels == [0, 1]


def test_labels_of_one_number_have_one_order(numbered):
    assert table(numbered, "0.png,01\n1.png,1\n2.png,10\n3.png,2\n").classes == (
        "01",
        "1",
        "2",
        "10",
    )


@pytest.mark.parametrize("again", ["0.png,a", "0.png,b", "./0.png,a", "../{}/0.png,a"])
def test_an_image_in_two_lines_is_refused(numbered, again):
    with pytest.raises(BellaError, match="in line 2 and in line 4: list each image once"):
        table(numbered, f"path,label\n0.png,a\n1.png,b\n{again.format(numbered.name)}\n")


def test_a_first_line_is_no_header_where_its_path_is_there(numbered):
    (numbered / "0.png").rename(numbered / "first")
    assert len(table(numbered, "first,a\n1.png,b\n")) == 2
    assert len(table(numbered, "where,what\n1.png,b\n")) == 1


def test_names_that_are_not_utf8_are_read_and_labels_must_be(numbered):
    name = b"caf\xe9.png"
    os.rename(numbered / "0.png", os.fsencode(numbered) + b"/" + name)
    images = table(numbered, name + b",a\n1.png,b\n")
    assert images[0][0].shape == (3, 8, 8)
    for text in (b"1.png,caf\xe9\n", "path,label\n1.png,b\n".encode("utf-16"), b"\xff.png,a\n"):
        with pytest.raises(BellaError, match="UTF-8"):
            table(numbered, text)


def test_a_table_that_is_a_pipe_or_names_the_impossible_is_refused(numbered):
    os.mkfifo(numbered / "p.csv")
    with pytest.raises(BellaError, match="is a pipe"):
        data.ImageTable(numbered / "p.csv", PIXELS)
    with pytest.raises(BellaError, match="1 of the 1 images"):
        table(numbered, "x" * 5000 + ".png,a\n")


# ---------------------------------------------------------------- preprocessing


def test_squeeze_takes_the_same_share_of_both_sides():
    """As if the whole had been squeezed to size / share, and its centre cut out."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    whole = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    found = Preprocess(8, 0.0, 1.0, squeeze=0.5)(image)
    torch.testing.assert_close(
        found, torch.tensor(whole[4:12, 4:12]).permute(2, 0, 1).float(), rtol=0, atol=1
    )
    with pytest.raises(BellaError, match="crop or squeeze"):
        Preprocess(8, crop=0.5, squeeze=0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": "32"},
        {"size": [float("inf"), 1]},
        {"size": float("nan")},
        {"size": None},
        {"size": 32.5},
        {"size": 10**9},
        {"size": True},
        {"mean": "123"},
        {"mean": float("nan")},
        {"mean": ["a", "b", "c"]},
        {"std": [float("inf")] * 3},
        {"interpolation": 5},
        {"interpolation": None},
        {"crop": "x"},
        {"squeeze": 0},
        {"augment": 5},
        {"augment": {"scale": ["a", "b"]}},
        {"augment": {"scale": 1}},
        {"augment": {"flip": "x"}},
    ],
)
def test_strangers_preprocessings_are_refused(wrong):
    with pytest.raises(BellaError):
        Preprocess.from_dict({"size": 8} | wrong)
    for other in ([1], None, "x"):
        with pytest.raises(BellaError):
            Preprocess.from_dict(other)
