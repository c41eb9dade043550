import json

import pytest
from set_files import write_vqa

from bella.data import ImageQuestions, Preprocess, open_data
from bella.errors import BellaError

PIXELS = Preprocess(8, mean=0.0, std=1.0)
FEW = {"least": 3}
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


@pytest.fixture
def folder(tmp_path):
    """20 training images with three questions each, and two test images."""
    train = []
    for image in range(100, 120):
        train.append((image, "Is it blue?", "yes" if image % 2 else "no", "yes/no"))
        train.append((image, "How many?", str(image % 4), "number"))
        train.append((image, "Where?", f"place {image}", "other"))
    write_vqa(tmp_path, "train2014", train)
    test = [(7, "Is it red?", "yes", "yes/no"), (9, "Where?", "nowhere", "other")]
    write_vqa(tmp_path, "val2014", test)
    return tmp_path


def test_questions_with_images_and_answers(folder):
    parts = open_data("vqa2", PIXELS, folder=folder, options=FEW)
    assert parts["train"].classes == ("0", "1", "2", "3", "no", "yes")
    assert all(isinstance(part, ImageQuestions) for part in parts.values())
    images = [set(parts[name].paths) for name in ("train", "validation")]
    assert (len(images[0]), len(images[1]), images[0] & images[1]) == (18, 2, set())
    assert (len(parts["train"]), len(parts["validation"])) == (36, 4)
    for part in (parts["train"], parts["validation"]):
        for i, path in enumerate(part.paths):
            image = int(path.stem.split("_")[-1])
            blue = part.questions[i] == "Is it blue?"
            right = ("yes" if image % 2 else "no") if blue else str(image % 4)
            assert part.classes[part.labels[i]] == right
            assert part.answers[i] == (right,) * 7 + ("unsure",) * 3
    (x, question), label = parts["test"][0]
    assert (x.shape, question, label) == ((3, 8, 8), "Is it red?", 5)
    assert parts["test"][1][1] == -1  # "nowhere" is no class; the question is kept
    assert parts["test"].answers[1][0] == "nowhere"


def test_one_type_of_answers_alone(folder):
    parts = open_data("vqa2", PIXELS, folder=folder, options=FEW | {"answer_type": "yes/no"})
    assert parts["train"].classes == ("no", "yes")
    assert set(parts["train"].questions) == {"Is it blue?"}
    with pytest.raises(BellaError, match="answer_type='yes': choose 'yes/no'"):
        open_data("vqa2", PIXELS, folder=folder, options={"answer_type": "yes"})
    with pytest.raises(BellaError, match="0 answers have 500 training questions or more"):
        open_data("vqa2", PIXELS, folder=folder, options={"least": 500})


def test_wrong_and_partial_copies_are_named(folder):
    def refused(message):
        with pytest.raises(BellaError, match=message):
            open_data("vqa2", PIXELS, folder=folder, options=FEW)

    with pytest.warns(UserWarning, match="60 train2014 questions and the published VQA v2 443,757"):
        open_data("vqa2", PIXELS, folder=folder, options=FEW)
    next((folder / "val2014").iterdir()).unlink()
    refused(r"1 of the images in .*val2014 that questions are about are missing, .*Get it: https")
    path = folder / "v2_mscoco_val2014_annotations.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps({"annotations": rows["annotations"][1:]}))
    refused(r"val2014_questions.json is damaged, or not whole \(a question without 91\)")
    path.write_text(json.dumps(rows)[:200])
    refused(r"val2014_annotations.json is damaged, or not whole")
    path.unlink()
    refused(r"a part of VQA v2 \(JSON\): v2_mscoco_val2014_annotations.json missing")
