"""Small data sets in the formats in which their authors give them."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from bella.data.sets.cifar import CLASSES, TRAIN


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Random pixels (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_picture(path: Path, seed: int, side: int = 8) -> Path:
    """A picture in a file, whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, side, side)).save(path)
    return path


def planes(pixels: np.ndarray) -> np.ndarray:
    """Pixels (n, height, width, 3) as CIFAR has them, (n, 3 height width): first all red."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))


def write_cifar10(root: Path, each: int = 20) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The batches for Python of CIFAR-10, with so many images; what is in them by part."""
    root.mkdir(parents=True, exist_ok=True)
    found: dict[str, list] = {"train": [], "test": []}
    for number, name in enumerate((*TRAIN, "test_batch")):
        pixels = np.stack([picture(100 * number + i, 32, 32) for i in range(each)])
        labels = [(number + i) % 10 for i in range(each)]
        entries = {
            b"batch_label": name.encode(),
            b"labels": labels,
            b"data": planes(pixels),
            b"filenames": [f"{i}.png".encode() for i in range(each)],
        }
        (root / name).write_bytes(pickle.dumps(entries, 2))
        found["test" if name == "test_batch" else "train"].append((pixels, labels))
    meta = {b"num_cases_per_batch": each, b"label_names": [c.encode() for c in CLASSES]}
    (root / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    return {
        part: (np.concatenate([p for p, _ in some]), [n for _, labels in some for n in labels])
        for part, some in found.items()
    }


def write_stl10(root: Path, counts: dict[str, int]) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The binary files of STL-10; what is in them by part."""
    root.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, (part, count) in enumerate(counts.items()):
        pixels = np.stack([picture(1000 * seed + i, 96, 96) for i in range(count)])
        labels = [i % 10 for i in range(count)]
        # Column by column: of each channel first the leftmost column from top to bottom.
        columns = [pixels[i, :, x, c] for i in range(count) for c in range(3) for x in range(96)]
        np.concatenate(columns).tofile(root / f"{part}_X.bin")
        (np.array(labels, np.uint8) + 1).tofile(root / f"{part}_y.bin")
        found[part] = (pixels, labels)
    return found


def write_csv(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    """Rows of equal columns as a file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_vqa(root: Path, part: str, asked: list[tuple[int, str, str, str]]) -> None:
    """Questions of VQA v2: image, question, answer and its type each; and the images."""
    questions, annotations = [], []
    for number, (image, question, answer, kind) in enumerate(asked):
        save_picture(root / part / f"COCO_{part}_{image:012d}.jpg", image)
        place = {"image_id": image, "question_id": 10 * image + number}
        questions.append({**place, "question": question})
        people = [
            {"answer": answer if i < 7 else "unsure", "answer_confidence": "yes", "answer_id": i}
            for i in range(10)
        ]
        own = {"question_type": "what", "answer_type": kind, "multiple_choice_answer": answer}
        annotations.append({**place, **own, "answers": people})
    annotations.reverse()  # the files need not have one order
    for name, entry, rows in (
        (f"v2_OpenEnded_mscoco_{part}_questions.json", "questions", questions),
        (f"v2_mscoco_{part}_annotations.json", "annotations", annotations),
    ):
        (root / name).write_text(json.dumps({"info": {}, entry: rows}))


def reviews(count, words, part):
    """As UCI writes them: quoted, with HTML's signs, and rated in words or from 1 to 10."""
    rows = []
    for i in range(count):
        rating = ("negative", "neutral", "positive")[i % 3] if words else (1 + i % 10)
        rows.append(
            {
                "": 1000 + i,
                "drugName": "Zomig",
                "condition": "Birth Control" if i % 5 == 0 else "Pain",
                "review": f'"It&#039;s no. {i} of\n\n{part}, rated {rating}"',
                "rating": rating,
                "date": "May 1, 2012",
                "usefulCount": 3,
            }
        )
    return rows


def write_reviews(folder):
    """UCI's two files, small; one review stands in both."""
    folder.mkdir(exist_ok=True)
    train, test = reviews(100, False, "train"), reviews(40, False, "test")
    test.append(test[0] | {"condition": "Pain", "review": train[1]["review"]})
    write_csv(folder / "drugsComTrain_raw.tsv", train, "\t")
    write_csv(folder / "drugsComTest_raw.tsv", test, "\t")


def write_wordnet(folder, nouns=60, others=12):
    """WordNet's form: two categories of nouns, and one of verbs, adjectives and adverbs each."""
    kinds = (("noun", (5, 13), nouns), ("verb", (38,), others), ("adj", (0,), others))
    for kind, categories, count in (*kinds, ("adv", (2,), others)):
        lines = []
        for category in categories:
            for i in range(count // len(categories)):
                what = f"{'red' if category == 5 else 'blue'} {kind}"
                lines.append(
                    f"{i:08d} {category:02d} n 01 {kind}{category}x{i} 0 001 @ 00001740 n 0000 | "
                    f"a {what} of size {i % 7} ; number {i}\n"
                )
        (folder / f"data.{kind}").write_text("".join(lines))
