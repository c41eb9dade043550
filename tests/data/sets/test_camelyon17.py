import pytest
from set_files import save_picture, write_csv

from bella.data import Preprocess, open_data
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


@pytest.fixture
def folder(tmp_path):
    """WILDS's folder: 12 patches of each of five hospitals, every fourth held back."""
    root = tmp_path / "camelyon17_v1.0"
    rows = []
    for hospital in range(5):
        for i in range(12):
            patient, node, x, y = 20 * hospital + 4, i % 3, 3000 + 32 * i, 64
            where = f"patient_{patient:03d}_node_{node}"
            save_picture(root / "patches" / where / f"patch_{where}_x_{x}_y_{y}.png", len(rows))
            rows.append(
                {
                    "": len(rows),
                    "patient": f"{patient:03d}",
                    "node": node,
                    "x_coord": x,
                    "y_coord": y,
                    "tumor": i % 2,
                    "slide": 10 * hospital + node,
                    "center": hospital,
                    "split": int(i >= 8),
                }
            )
    write_csv(root / "metadata.csv", rows)
    return tmp_path


def hospitals(part):
    return {int(path.parent.name.split("_")[1]) // 20 for path in part.paths}


def test_parts_are_split_by_hospital(folder):
    parts = open_data("camelyon17", PIXELS, folder=folder)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 24,
        "validation": 6,
        "test": 6,
        "hospital-1": 12,
        "hospital-2": 12,
    }
    assert [hospitals(part) for part in parts.values()] == [{0, 3, 4}] * 3 + [{1}, {2}]
    assert parts["train"].classes == ("normal", "tumor")
    for part in parts.values():
        columns = [int(path.stem.split("_")[6]) for path in part.paths]
        assert part.labels == [(x - 3000) // 32 % 2 for x in columns]
    held = [path.stem.split("_")[6] for n in ("validation", "test") for path in parts[n].paths]
    assert sorted(held) == sorted(3 * ["3256", "3288", "3320", "3352"])
    assert parts["test"][0][0].shape == (3, 8, 8)
    two = open_data("camelyon17", PIXELS, folder=folder, options={"hospitals": [1, 2]})
    assert list(two)[3:] == ["hospital-0", "hospital-3", "hospital-4"]
    assert hospitals(two["train"]) == {1, 2}


def test_wrong_and_partial_folders_are_named(folder):
    root = folder / "camelyon17_v1.0"

    def refused(message, **options):
        with pytest.raises(BellaError, match=message):
            open_data("camelyon17", PIXELS, folder=folder, options=options)

    with pytest.warns(UserWarning, match="holds 60 patches and the published .* 455,954"):
        open_data("camelyon17", PIXELS, folder=folder)
    refused(r"knows \[0, 1, 2, 3, 4\] to choose from", hospitals=[5])
    path = next((root / "patches").rglob("*.png"))
    path.unlink()
    refused(rf"1 of the 60 patches .* missing, the first is .*{path.name}.*10,658,709,504 bytes")
    text = (root / "metadata.csv").read_text()
    (root / "metadata.csv").write_text(text.replace("center", "centre"))
    refused(r"metadata.csv is damaged, or not whole \(no column center\)")
    (root / "metadata.csv").write_text(text[:-40])
    refused(r"metadata.csv is damaged, or not whole \(line 60: 58,084,1,332")
    (root / "metadata.csv").unlink()
    refused(r"a part of CAMELYON17 \(WILDS\) \(WILDS\): metadata.csv missing")
