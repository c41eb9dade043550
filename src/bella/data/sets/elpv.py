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
from bella.data.sets.base import DataSet, folder_of
from bella.data.split import FRACTIONS
from bella.files import read_bytes

CLASSES = ("functional", "defective")
COUNT = 2_624


class SolarCells(LabelledImages):
    """Solar cells; beside the label each has the experts' ``.probability`` of a defect.

    The label is the likelier class: defective from 2/3 on.
    """

    columns: ClassVar[tuple[str, ...]] = (*LabelledImages.columns, "probability")

    def __init__(self, paths: Sequence[Path], probability: Sequence[float], preprocess: Preprocess):
        super().__init__(paths, [int(p > 0.5) for p in probability], CLASSES, preprocess)
        self.probability = list(probability)


def elpv(
    preprocess: Preprocess,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
    folder: str | Path | None = None,
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
        folder: holds ``labels.csv`` and ``images``; by default that of the package.

    Raises:
        MissingExtraError: the package ``elpv-dataset`` is not installed.
        BellaError: files are missing or damaged.
    """
    if folder is None:
        data = folder_of("elpv_dataset", ELPV) / "data"
    else:
        _, data = ELPV.found(Path(folder))
    groups: dict[tuple[str, bool], tuple[list[Path], list[float]]] = {}
    for line in read_bytes(data / "labels.csv").decode("utf-8", "replace").splitlines():
        try:
            name, value, kind = line.split()
            probability = float(value)
        except ValueError:
            raise ELPV.damaged(data / "labels.csv", f"{line[:60]!r}") from None
        paths, probabilities = groups.setdefault((kind, probability in (0.0, 1.0)), ([], []))
        paths.append(data / name)
        probabilities.append(probability)
    if set(groups) != {(kind, agreed) for kind in ("mono", "poly") for agreed in (True, False)}:
        raise ELPV.damaged(data / "labels.csv", "cells of each kind, agreed on and doubted, miss")
    ELPV.expect(sum(len(paths) for paths, _ in groups.values()), COUNT, "cells", data)
    plain = preprocess.plain()
    return SolarCells(*groups["mono", True], preprocess).split(fractions, seed) | {
        "doubt": SolarCells(*groups["mono", False], plain),
        "poly": SolarCells(*groups["poly", True], plain),
        "poly_doubt": SolarCells(*groups["poly", False], plain),
    }


ELPV = DataSet(
    "elpv",
    "ELPV",
    "image",
    "2,624 grey images of solar cells, 300x300 pixels, functional or defective",
    {
        "train": "541 monocrystalline cells that the experts agree on",
        "validation": "135 more, drawn by class",
        "test": "225 more",
        "doubt": "the 173 monocrystalline cells that they do not agree on",
        "poly": "the 1,322 polycrystalline cells that they agree on",
        "poly_doubt": "the other 228",
    },
    "pip install 'bella-bnn[demo]' (elpv-dataset, 91 MB), or github.com/zae-bayern/elpv-dataset",
    "Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al., Solar Energy 185, 2019; CC-BY-NC-SA 4.0",
    lambda folder, preprocess, seed=0: elpv(preprocess, seed, folder=folder),
    {"labels.csv": ("labels.csv", "images/")},
)
