"""Table 3: accuracy where the data come from elsewhere than the training data."""

from __future__ import annotations

from bella.errors import BellaError
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Product, Sheet
from bella.experiments.paper.rows import BASIC, CONTROLS, CREDIT
from bella.experiments.paper.tables.common import (
    OTHER_DATA,
    average_picture,
    precision_note,
    scored_shifts,
    shift_sheet,
)

DOMAINS = ("Real", "Clip-Art", "Infograph", "Paint", "Sketch", "average")
PUBLISHED = Sheet(
    (Column("DomainNet"), *(Column(name, "%", "{:.2f}") for name in DOMAINS)),
    (
        ("Single base", 74.61, 55.29, 31.81, 53.87, 43.84, 51.89),
        ("VBL", 82.97, 59.94, 26.56, 52.81, 46.96, 53.85),
        ("Ensemble Bella", 82.70, 61.22, 28.15, 55.32, 51.58, 55.60),
        ("Ensemble base", 85.07, 65.40, 36.07, 57.90, 54.22, 59.73),
        ("SVGD Bella", 84.47, 63.67, 32.22, 56.83, 54.86, 58.41),
        ("SVGD base", 85.42, 65.53, 36.58, 58.18, 55.47, 60.24),
    ),
)


def make(setup: Setup) -> Product:
    """Accuracy at home and on every shift whose labels count.

    Raises:
        BellaError: the data have no such shift.
    """
    task = setup.task
    shifts = {part: [part] for part in scored_shifts(task)}
    if not shifts:
        raise BellaError(
            f"{task.title} has no shifted part with labels: choose data with domains, or name "
            "images of another kind with --ood."
        )
    sheet = shift_sheet(setup.compare(), shifts, home="test")
    return Product(
        title=f"Table 3: domain shift, {task.title}",
        shows=(
            "Accuracy on test data like the training data and on data from elsewhere, with the "
            "mean over these columns. The mean NLL of the shifted parts says how sure the wrong "
            "answers are, which accuracy does not."
        ),
        sheet=sheet,
        theirs=PUBLISHED,
        comparable=f"{OTHER_DATA} {CREDIT}",
        pictures=[average_picture(sheet, task.title)],
        notes=[setup.averaging, *(precision_note(task, part) for part in ("test", *shifts))],
    )


ITEM = Item(
    make=make,
    title="accuracy under domain shift",
    methods=(*BASIC, *CONTROLS),
    data=("elpv",),
    train=200,
    others=200,
    cost="7 minutes",
)
