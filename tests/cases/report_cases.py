"""Small material for reports: pictures or texts, with particles that know them a little."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from bella.data import ArrayImages, Preprocess
from bella.data.written import LabelledTexts
from bella.evaluation.evaluate import known_figures, shifted_figures
from bella.prediction.predictive import Predictive
from bella.report.material import Material

CLASSES = ("day", "night & <fog>", 'the "third"')
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def said(count, seed, particles=3, knows=2.0):
    """Logits that lean to the labels, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    logits = torch.randn(particles, count, len(CLASSES), generator=generator)
    logits[:, torch.arange(count), labels] += knows
    return Predictive(logits), labels


def pictures(labels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 20, 30, 3), dtype=np.uint8)
    return ArrayImages(list(pixels), labels.tolist(), CLASSES, Preprocess(16))


def texts(labels):
    written = [f"</script><b>word {i}</b>" for i in range(len(labels))]
    return LabelledTexts(written, labels.tolist(), CLASSES)


def figure(value, seeds):
    values = [value + 0.01 * seed for seed in range(seeds)]
    return {"mean": value, "spread": None if seeds == 1 else 0.01, "values": values}


def method(title, parts, seeds):
    rows = known_figures(*parts["test"])
    far = shifted_figures(*parts["test"], *parts["far"])
    costs = {"trainable": 120, "bytes_on_disk": 480, "seconds_training": 3.0}
    return {
        "title": title,
        "figures": {name: figure(value, seeds) for name, value in rows.items()},
        "parts": {"far": {name: figure(value, seeds) for name, value in far.items()}},
        "costs": {name: figure(value, seeds) for name, value in costs.items()},
    }


def small_material(
    *, titles=("Bella",), seeds=1, particles=3, validation=60, knows=2.0, inputs="pictures"
):
    """A chapter: the first title is told of; on ``far`` nothing is known."""
    predictions = {}
    for number, title in enumerate(titles):
        n = particles if number == 0 else 1
        predictions[title] = {
            "validation": said(validation, 10 + number, n, knows),
            "test": said(90, 20 + number, n, knows),
            "far": said(40, 30 + number, n, knows=0.0),
        }
        if not validation:
            del predictions[title]["validation"]
    names = ("bella", "lora+temperature", "lora-ensemble", "probe")
    results = {
        "title": "Small",
        "seeds": seeds,
        "splits": "all seeds",
        "parts": {"train": 10, "test": 90, "far": 40},
        "shifts": ["far"],
        "words": {"examples": "views", "noticing": {}, "unscored": []},
        "methods": {
            name: method(title, predictions[title], seeds)
            for name, title in zip(names, titles, strict=False)
        },
    }
    shown = {}
    if inputs == "pictures":
        shown = {part: pictures(predictions[titles[0]][part][1], 0) for part in ("test", "far")}
    elif inputs == "texts":
        shown = {part: texts(predictions[titles[0]][part][1]) for part in ("test", "far")}
    return Material(
        title="Small <i>views</i>",
        facts={"network": "a & b"},
        results=results,
        predictions=predictions,
        told=titles[0],
        classes=CLASSES,
        inputs=shown,
        command="bella predict 'my run' IMAGES",
        history=[{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}],
        notes=["A note."],
    )


def browse(page, folder, *flags):
    """What Chromium says of a page; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium to open the report with: install it, or trust the others")
    command = [
        found,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder / 'profile'}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def luminance(colour):
    values = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
