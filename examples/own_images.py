"""Your own images: a folder for each class.

Here the folders hold handwritten digits, 0 to 7. A run is trained on them by the command, and
then shown new files, among them digits that it has never seen. What it is least sure of comes
first.
"""

import csv
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")


def bella(*words):
    """Run the command, as you would type it."""
    print("$ bella", *words)
    subprocess.run([sys.executable, "-m", "bella", *words, "--quiet"], check=True, cwd=folder)


digits = load_digits()
for number in range(500):
    pixels, digit = digits.images[number], digits.target[number]
    known = number < 400 and digit < 8
    place = folder / "photos" / str(digit) if known else folder / "new"
    if known or number >= 460:
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels * 255 / 16)).save(place / f"{number}-is-{digit}.png")

bella("fit", "--data", "photos", "--image-size", "64", "--epochs", "3", "--out", "run")
bella("predict", "run", "new", "--out", "new.csv")

with open(folder / "new.csv", newline="") as file:
    rows = sorted(csv.DictReader(file), key=lambda row: int(row["rank"]))
figure, axes = plt.subplots(2, 8, figsize=(9, 3.1), layout="constrained")
for axis, row in zip(axes.flat, rows[:8] + rows[-8:], strict=True):
    axis.imshow(Image.open(folder / row["image"]), cmap="gray_r")
    axis.set_title(f"{row['class']}? {float(row['probability']):.0%}", fontsize=9)
    axis.axis("off")
figure.suptitle("The least sure above, the surest below", fontsize=10)
figure.savefig(folder / "own_images.png", dpi=90)

strange = [int(row["rank"]) for row in rows if row["image"][-5] in "89"]
print(f"{len(rows)} new images; the {len(strange)} digits that it never saw come at", strange)
