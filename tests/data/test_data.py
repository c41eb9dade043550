import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bella import data
from bella.data.images import Augment, Preprocess, load_image
from bella.data.split import FRACTIONS, stratified_split
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)


def noise_image(height=12, width=16, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_folder(root, counts, suffix=".png"):
    """A folder per class with ``counts[name]`` images, each with pixels of its own."""
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise_image(seed=1000 * place + i).save(root / name / f"{i:03d}{suffix}")
    return root


@pytest.fixture
def animals(tmp_path):
    return write_folder(tmp_path / "animals", {"dog": 12, "cat": 8})


# Preprocess


def test_a_picture_of_the_right_size_is_only_normalised():
    image = noise_image(8, 8)
    tensor = Preprocess((8, 8), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))(image)
    pixels = torch.tensor(np.array(image), dtype=torch.float64).permute(2, 0, 1)
    expected = torch.stack([(pixels[c] - (c + 1)) / (c + 4) for c in range(3)])
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-5)


def test_lite0_maps_black_and_white_to_its_own_range():
    preprocess = Preprocess(4, mean=127, std=128)
    assert preprocess(Image.new("L", (9, 9), 255)).eq(1.0).all()
    assert preprocess(Image.new("L", (9, 9), 0)).eq(-127 / 128).all()


def test_resampling_agrees_with_torch_up_to_rounding_of_pixels():
    image = noise_image(40, 60)
    pixels = torch.tensor(np.array(image)).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(
        pixels, (10, 12), mode="bilinear", antialias=True, align_corners=False
    )[0]
    torch.testing.assert_close(
        Preprocess((10, 12), mean=0.0, std=1.0)(image), expected, rtol=0, atol=1.0
    )


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_crop_keeps_the_aspect_and_the_centre(size):
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    if size == (60, 20):
        wide = wide.transpose(1, 0, 2)
    image = Image.fromarray(np.ascontiguousarray(wide))
    cropped = Preprocess(20, mean=0.0, std=1.0, crop=1.0)(image)
    squeezed = Preprocess(20, mean=0.0, std=1.0)(image)
    assert cropped.eq(200).all()
    assert squeezed.min() == 0


def test_crop_share_zooms_in():
    image = Image.fromarray(np.pad(np.full((8, 8), 90, dtype=np.uint8), 4))
    assert Preprocess(8, mean=0.0, std=1.0, crop=0.5)(image).eq(90).all()


def test_augmentation_follows_torchs_seed_and_changes_the_picture():
    preprocess = Preprocess(8, mean=0.0, std=1.0, augment=Augment())
    image = noise_image(32, 32)

    def draws(seed):
        torch.manual_seed(seed)
        return torch.stack([preprocess(image) for _ in range(4)])

    first = draws(0)
    assert torch.equal(first, draws(0))
    assert not torch.equal(first, draws(1))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(preprocess.plain()(image), PIXELS(image))


def test_a_certain_flip_without_a_crop_is_the_mirror_image():
    image = noise_image(8, 8)
    flip = Preprocess(8, mean=0.0, std=1.0, augment=Augment(1.0, (1.0, 1.0), (1.0, 1.0)))
    assert torch.equal(flip(image), PIXELS(image).flip(-1))


@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    crop=st.none() | st.floats(0.05, 1),
    seed=st.integers(0, 99),
)
def test_every_picture_gives_a_tensor_of_the_size_asked_for(width, height, crop, seed):
    torch.manual_seed(seed)
    image = Image.new("RGB", (width, height), (10, 20, 30))
    preprocess = Preprocess((5, 7), mean=0.0, std=1.0, crop=crop, augment=Augment())
    expected = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1).expand(3, 5, 7)
    assert torch.equal(preprocess(image), expected)


@pytest.mark.parametrize("augment", [None, Augment(0.25, (0.5, 0.9))])
def test_preprocessing_survives_json_and_pickle(augment):
    preprocess = Preprocess((6, 4), 127, 128, crop=0.875, interpolation="bicubic", augment=augment)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "must be positive, in pixels"),
        ({"size": (1, 2, 3)}, "one number or 2"),
        ({"size": 8, "mean": (1.0, 2.0)}, "one number or 3"),
        ({"size": 8, "std": 0.0}, "must be positive, in pixel units"),
        ({"size": 8, "crop": 1.5}, "share of the picture"),
        ({"size": 8, "interpolation": "bilinaer"}, "near are 'bilinear'"),
        ({"size": 8, "colour": 1}, "not a preprocessing that bella saved"),
        ({"size": 8, "augment": {"flip": 2.0}}, "probability"),
        ({"size": 8, "augment": {"scale": [0.9, 0.1]}}, "range within"),
        ({"size": 8, "augment": {"ratio": [0.0, 1.0]}}, "positive numbers"),
    ],
)
def test_a_wrong_preprocessing_is_refused(arguments, message):
    with pytest.raises(BellaError, match=message):
        Preprocess.from_dict(arguments)


# load_image


def test_modes_of_pictures_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode, (3, 2)).save(path)
        assert load_image(path).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 256 * 100, 65535]], dtype=np.uint16)).save(path)
    assert np.array(load_image(path))[0, :, 0].tolist() == [0, 100, 255]


def test_a_photograph_is_turned_upright(tmp_path):
    image = Image.new("RGB", (6, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (3, 6)


def test_a_file_that_is_no_image_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    noise_image().save(broken)
    broken.write_bytes(broken.read_bytes()[:200])
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    floats = tmp_path / "floats.tif"
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(floats)
    for path, message in [
        (broken, "broken.png cannot be read as an image"),
        (text, "text.jpg cannot be read as an image"),
        (tmp_path / "absent.png", "no image at .*absent.png"),
        (floats, "floats.tif has pixels of mode 'F'"),
    ]:
        with pytest.raises(BellaError, match=message):
            load_image(path)


# Folders and tables


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_a_folder_per_class(animals):
    (animals / "cat" / "notes.txt").write_text("no image")
    (animals / "cat" / "._000.png").write_text("a leaving of an archive")
    (animals / ".hidden").mkdir()
    images = data.open_images(animals, PIXELS)
    assert isinstance(images, data.ImageFolder)
    assert images.classes == ("cat", "dog")
    assert len(images) == 20
    assert images.labels == [0] * 8 + [1] * 12
    assert [path.parent.name for path in images.paths] == ["cat"] * 8 + ["dog"] * 12
    x, y = images[8]
    assert y == 1
    assert torch.equal(x, PIXELS(load_image(animals / "dog" / "000.png")))


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".bmp", ".webp", ".tif"])
def test_usual_formats_count_as_images(tmp_path, suffix):
    images = data.ImageFolder(write_folder(tmp_path, {"a": 1}, suffix), PIXELS)
    assert images[0][0].shape == (3, 8, 8)


def test_given_classes_fix_the_labels(animals):
    images = data.ImageFolder(animals, PIXELS, classes=("dog", "bird", "cat"))
    assert set(images.labels[:8]) == {2}
    assert set(images.labels[8:]) == {0}


def test_bad_folders_are_refused(tmp_path, animals):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    noise_image().save(tmp_path / "flat" / "a.png")
    (tmp_path / "hollow" / "dog").mkdir(parents=True)
    for path, classes, message in [
        (tmp_path / "absent", None, "neither a folder nor a CSV file"),
        (tmp_path / "flat" / "a.png", None, "neither a folder nor a CSV file"),
        (tmp_path / "empty", None, "holds 0 images and no class folders"),
        (tmp_path / "flat", None, "holds 1 images and no class folders"),
        (tmp_path / "hollow", None, "dog holds no images"),
        (animals, ("cat", "dogs"), "none of the 2 classes: near are 'dogs'"),
    ]:
        with pytest.raises(BellaError, match=message):
            data.open_images(path, PIXELS, classes)
    with pytest.raises(BellaError, match="no folder"):
        data.ImageFolder(tmp_path / "absent", PIXELS)


@pytest.mark.parametrize(
    "text",
    [
        "path,label\ncat/000.png,cat\ndog/001.png,dog\n",
        "\ufeffid,Class,Image\n7,cat,cat/000.png\n8,dog,dog/001.png\n",
        "cat/000.png,cat\n\ndog/001.png,dog\n",
        "where,what\ncat/000.png,cat\ndog/001.png,dog\n",
    ],
)
def test_a_table_with_known_names_or_by_position(animals, text):
    (animals / "table.csv").write_text(text, encoding="utf-8")
    images = data.open_images(animals / "table.csv", PIXELS)
    assert isinstance(images, data.ImageTable)
    assert images.classes == ("cat", "dog")
    assert images.labels == [0, 1]
    assert torch.equal(images[1][0], PIXELS(load_image(animals / "dog" / "001.png")))


def test_number_labels_are_sorted_as_numbers_or_index_the_given_classes(animals):
    rows = "".join(f"cat/00{i}.png,{label}\n" for i, label in enumerate([10, 2, 0]))
    (animals / "table.csv").write_text(rows)
    images = data.ImageTable(animals / "table.csv", PIXELS)
    assert images.classes == ("0", "2", "10")
    assert images.labels == [2, 1, 0]
    (animals / "table.csv").write_text("cat/000.png,1\ncat/001.png,0\n")
    assert data.ImageTable(animals / "table.csv", PIXELS, ("cat", "dog")).labels == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "header and no rows"),
        ("path,width\ncat/000.png,3\n", "no column for the label"),
        ("label,width\ncat,3\n", "no column for the path"),
        ("cat/000.png;cat\n", "no column for the path"),
        ("path,label\ncat/000.png\n", "Line 2 of .* has no label"),
        ("path,label\ncat/000.png,\n", "Line 2 of .* has no label"),
        ("path,label\ncat/000.png,cat\ncat/999.png,cat\n", "1 of the 2 images .*999.png"),
        ("path,label\ncat/000.png,catt\n", "label 'catt'.* near are 'cat'"),
        ("path,label\ncat/000.png,2\n", "label '2', which is none of the 2 classes"),
    ],
)
def test_bad_tables_are_refused(animals, text, message):
    (animals / "table.csv").write_text(text)
    with pytest.raises(BellaError, match=message):
        data.ImageTable(animals / "table.csv", PIXELS, ("cat", "dog"))


def test_a_table_in_another_encoding_is_refused(animals):
    (animals / "table.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    with pytest.raises(BellaError, match="cannot be read as a CSV file in UTF-8"):
        data.ImageTable(animals / "table.csv", PIXELS)


def test_unlabelled_images_from_files_and_folders(animals):
    augmented = Preprocess(8, mean=0.0, std=1.0, augment=Augment())
    images = data.ImageList([animals / "dog" / "003.png", animals], augmented)
    assert len(images) == 21
    assert images.paths[0].name == "003.png"
    assert torch.equal(images[0], PIXELS(load_image(animals / "dog" / "003.png")))
    assert len(data.ImageList(animals / "cat", PIXELS)) == 8
    for nothing in ([], animals / "nothing.d"):
        if nothing:
            nothing.mkdir()
        with pytest.raises(BellaError, match="There is no image in"):
            data.ImageList(nothing, PIXELS)


def test_one_folder_is_split_and_only_train_is_augmented(animals):
    augmented = Preprocess(8, mean=0.0, std=1.0, augment=Augment())
    parts = data.splits(animals, augmented, seed=3)
    assert list(parts) == ["train", "validation", "test"]
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 12,
        "validation": 3,
        "test": 5,
    }
    every = [path for part in parts.values() for path in part.paths]
    assert sorted(every) == sorted(data.ImageFolder(animals, PIXELS).paths)
    assert parts["train"].preprocess == augmented
    assert parts["validation"].preprocess == parts["test"].preprocess == PIXELS
    x, y = parts["test"][0]
    assert torch.equal(x, PIXELS(load_image(parts["test"].paths[0])))
    assert parts["test"].classes[y] == parts["test"].paths[0].parent.name


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_parts_in_folders_are_taken_as_they_are(tmp_path, name):
    for part, count in (("train", 4), (name, 2), ("test", 3)):
        write_folder(tmp_path / part, {"a": count, "b": count})
    parts = data.splits(tmp_path, PIXELS)
    assert {part: len(images) for part, images in parts.items()} == {
        "train": 8,
        "validation": 4,
        "test": 6,
    }
    assert {path.parts[-3] for path in parts["validation"].paths} == {name}


def test_a_part_without_a_folder_is_taken_from_train(tmp_path):
    write_folder(tmp_path / "train", {"a": 20, "b": 20})
    write_folder(tmp_path / "test", {"b": 3})
    parts = data.splits(tmp_path, PIXELS, fractions={"train": 0.6, "validation": 0.2, "test": 0.2})
    assert {part: len(images) for part, images in parts.items()} == {
        "train": 30,
        "validation": 10,
        "test": 3,
    }
    assert set(parts["train"].paths).isdisjoint(parts["validation"].paths)
    assert parts["test"].classes == ("a", "b")
    assert parts["test"].labels == [1, 1, 1]


def test_a_class_that_train_does_not_know_is_refused(tmp_path):
    write_folder(tmp_path / "train", {"a": 2})
    write_folder(tmp_path / "test", {"b": 1})
    with pytest.raises(BellaError, match="none of the 1 classes"):
        data.splits(tmp_path, PIXELS)
    with pytest.raises(BellaError, match="must name a part 'train'"):
        data.splits(tmp_path, PIXELS, fractions={"test": 1.0})


# Splits

LABELS = st.lists(st.integers(0, 4), max_size=120)


@given(
    labels=LABELS,
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_complete_disjoint_deterministic_and_stratified(labels, weights, seed):
    fractions = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    parts = stratified_split(labels, fractions, seed)
    assert list(parts) == list(fractions)
    assert sorted(i for part in parts.values() for i in part) == list(range(len(labels)))
    assert parts == stratified_split(labels, fractions, seed)
    for label in set(labels):
        count = labels.count(label)
        given = {name: sum(labels[i] == label for i in part) for name, part in parts.items()}
        if count >= len(fractions):
            assert min(given.values()) >= 1
        if all(share * count >= 1 for share in fractions.values()):
            assert all(abs(given[n] - fractions[n] * count) < 1 for n in fractions)


def test_another_seed_gives_another_split():
    labels = [0, 1] * 50
    assert stratified_split(labels, FRACTIONS, 0) != stratified_split(labels, FRACTIONS, 1)


@pytest.mark.parametrize("fractions", [{"a": 0.5}, {"a": 1.2, "b": -0.2}, {}])
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(BellaError, match="must be positive and sum to 1"):
        stratified_split([0, 1], fractions, 0)
