"""ELPV: electroluminescence images of solar cells, with experts' doubt and a real domain shift.

2,624 grey images of 300x300 pixels. Experts gave each cell a probability of being defective: 0,
1/3, 2/3 or 1. Cells are monocrystalline or polycrystalline. The labels do not say which module a
cell was cut from, so that cells of one module can stand on both sides of a split.

Source: Buerhop-Lutz et al., A benchmark for visual identification of defective solar cells in
electroluminescence imagery, EU PVSEC 2018; Deitsch et al., Automatic classification of defective
photovoltaic module cells in electroluminescence images, Solar Energy 185, 2019. CC-BY-NC-SA 4.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages
from bella.data.split import FRACTIONS
from bella.errors import require

CLASSES = ("functional", "defective")


class SolarCells(LabelledImages):
    """Solar cells; beside the label each has the experts' ``.probability`` of a defect.

    The label is the likelier class: defective from 2/3 on.
    """

    columns: ClassVar[tuple[str, ...]] = (*LabelledImages.columns, "probability")

    def __init__(self, paths: Sequence[Path], probability: Sequence[float], preprocess: Preprocess):
        super().__init__(paths, [int(p > 0.5) for p in probability], CLASSES, preprocess)
        self.probability = list(probability)


def elpv(
    preprocess: Preprocess, seed: int = 0, fractions: Mapping[str, float] = FRACTIONS
) -> dict[str, SolarCells]:
    """The parts of ELPV.

    The 901 monocrystalline cells on which experts agree (probability 0 or 1) are split into
    ``train``, ``validation`` and ``test`` (541, 135 and 225 by default), stratified by label. The
    other parts are never trained on: ``doubt``, the 173 monocrystalline cells of probability 1/3
    or 2/3; ``poly``, the 1,322 polycrystalline cells on which experts agree, a domain shift; and
    ``poly_doubt``, the other 228.

    Args:
        preprocess: from a PIL image to a tensor; its augmentation applies to ``train`` alone.
        seed: of the split.
        fractions: names and shares of the parts of the 901 cells.

    Raises:
        MissingExtraError: the package ``elpv-dataset`` is not installed.
    """
    package = require("elpv_dataset", extra="demo")
    data = Path(str(package.__file__)).parent / "data"
    groups: dict[tuple[str, bool], tuple[list[Path], list[float]]] = {}
    for line in (data / "labels.csv").read_text().splitlines():
        name, probability, kind = line.split()
        agreed = float(probability) in (0.0, 1.0)
        paths, probabilities = groups.setdefault((kind, agreed), ([], []))
        paths.append(data / name)
        probabilities.append(float(probability))
    plain = preprocess.plain()
    return SolarCells(*groups["mono", True], preprocess).split(fractions, seed) | {
        "doubt": SolarCells(*groups["mono", False], plain),
        "poly": SolarCells(*groups["poly", True], plain),
        "poly_doubt": SolarCells(*groups["poly", False], plain),
    }
