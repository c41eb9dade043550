"""ELPV: 2,624 electroluminescence images of solar cells, with the experts' doubts.

Each cell is mono- or polycrystalline, and has a defect probability of 0, 1/3, 2/3 or 1. Trained on
mono cells on which the experts agreed, a network meets two real questions: cells about which they
doubted, and polycrystalline cells, a domain it never saw.

Source:
    Deitsch et al. 2019 and 2021; Buerhop-Lutz et al. 2018. Data under CC-BY-NC-SA 4.0, from the
    PyPI package ``elpv-dataset``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bella.data.folder import LabelledImages, Transform
from bella.data.split import stratified_split
from bella.errors import require

CLASSES = ("functional", "defective")
FRACTIONS = {"train": 0.6, "validation": 0.15, "test": 0.25}


class Cells(LabelledImages):
    """Solar cells; ``probability`` is the experts' for a defect, the label its nearer end."""

    def __init__(self, paths: Sequence[Path], probability: Sequence[float], preprocess: Transform):
        labels = [int(p > 0.5) for p in probability]
        super().__init__(paths, labels, CLASSES, preprocess)
        self.probability = list(probability)


def elpv(preprocess: Transform, *, seed: int = 0) -> dict[str, Cells]:
    """The cells in six parts.

    Args:
        preprocess: from a PIL image to a tensor.
        seed: decides the stratified split of the clean mono cells.

    Returns:
        ``train``, ``validation``, ``test``: mono cells of probability 0 or 1; ``doubt``: mono cells
        of 1/3 or 2/3; ``poly``: polycrystalline cells of 0 or 1; ``poly_doubt``.

    Raises:
        MissingExtraError: ``elpv-dataset`` is not installed.
    """
    package = require("elpv_dataset", "demo")
    root = Path(package.__file__).parent / "data"  # type: ignore[arg-type]
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line.strip()]
    cells = [(root / name, float(p), kind) for name, p, kind in rows]

    def part(kind: str, clean: bool) -> list[tuple[Path, float]]:
        return [(path, p) for path, p, k in cells if k == kind and (p in (0.0, 1.0)) == clean]

    mono = part("mono", True)
    split = stratified_split([int(p) for _, p in mono], FRACTIONS, seed)
    parts = {name: [mono[i] for i in positions] for name, positions in split.items()}
    parts |= {"doubt": part("mono", False), "poly": part("poly", True)}
    parts |= {"poly_doubt": part("poly", False)}
    return {
        name: Cells([path for path, _ in members], [p for _, p in members], preprocess)
        for name, members in parts.items()
    }
