"""Solar cells: mono cells to train on, doubtful and polycrystalline cells as shifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bella.data.sets.base import at_most
from bella.data.split import stratified_split
from bella.experiments.tasks.task import Gallery, Place, Task, Words, opener, whole
from bella.prediction.predictive import Predictive


def elpv_task(shift_limit: int = 400) -> Task:
    """Solar cells: train on mono cells that the experts agreed on; doubt and poly are shifts.

    Each seed splits the mono cells anew, so that the spread over seeds is that of the data too.

    Args:
        shift_limit: polycrystalline cells to test on, a stratified choice of the 1,322.
    """
    from bella.data import elpv

    open_lite = opener("efficientnet-lite0", 2, 160)
    parts: dict[str, Any] = dict(elpv(open_lite(0).preprocess))
    parts["poly"] = at_most(shift_limit, parts["poly"])
    mono = parts["train"].join([parts["validation"], parts["test"]])
    pools = {"mono": mono, "doubt": parts["doubt"], "poly": parts["poly"]}

    def split(seed: int) -> dict[str, Place]:
        fractions = {"train": 0.65, "validation": 0.15, "test": 0.2}
        clean = stratified_split(mono.labels, fractions, seed)
        shifted = {name: whole(name, pools[name]) for name in ("doubt", "poly")}
        return {name: ("mono", positions) for name, positions in clean.items()} | shifted

    return Task(
        "elpv",
        "ELPV solar cells, EfficientNet-Lite0",
        open_lite,
        pools,
        split,
        {"doubt": "doubt", "shift": "poly"},
        {"epochs": 3, "learning_rate": 1e-3},
        words=Words(
            examples="cells",
            noticing={"doubt": "finding cells that experts doubted"},
            unscored=("doubt",),
            galleries=(
                Gallery(
                    "The same among the cells that experts doubted",
                    "doubt",
                    lambda cells: [f"defect {p:.2f}" for p in cells.probability],
                ),
            ),
            groups=groups_of_cells,
        ),
    )


def groups_of_cells(task: Task, predictive: Mapping[str, Predictive]) -> dict[str, Predictive]:
    """Cells by what the experts said of them, and those of the other kind."""
    found = {}
    for part, values in (("test", (0.0, 1.0)), ("doubt", (1 / 3, 2 / 3))):
        cells: Any = task.part(part, 0)
        for value in values:
            rows = [i for i, p in enumerate(cells.probability) if abs(p - value) < 0.1]
            shown = f"{value:.0f}" if part == "test" else f"{round(3 * value)}/3"
            found[f"mono, defect {shown}"] = predictive[part].rows(torch.tensor(rows))
    return found | {"poly": predictive["poly"]}
