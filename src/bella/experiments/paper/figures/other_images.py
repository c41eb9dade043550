"""Figure 8: accuracy on another data set of the same classes."""

from __future__ import annotations

from bella.errors import BellaError
from bella.experiments.paper.figures.common import finding, scored_shifts, standard_error
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value, middle_of
from bella.experiments.paper.rows import THEIRS
from bella.report.charts import Axis
from bella.report.plotted import dots


def make(setup: Setup) -> Product:
    """Accuracy of every row on the parts of other origin."""
    task = setup.task
    shifts = scored_shifts(task)
    if not shifts:
        raise BellaError(
            f"{task.title} has no other images of its own classes: choose data with a shifted part "
            "that has right answers, such as elpv or cifar10-stl10."
        )
    compared = setup.compare()
    parts = {"test": "test", **shifts}
    found = {
        part: {
            title: [100 * value for value in compared.figures(name, part)["accuracy"]]
            for name, title in compared.titles.items()
        }
        for part in parts.values()
    }
    columns = [
        Column("system"),
        Column("in the paper"),
        *(Column(f"accuracy on {part}", "%", "{:.1f}") for part in found),
    ]
    rows: list[list[Value]] = [
        [title, THEIRS.get(name, ""), *(of[title] for of in found.values())]
        for name, title in compared.titles.items()
    ]
    pictures = [
        Picture(
            part if len(shifts) > 1 else "",
            f"Accuracy in percent on {part} of {task.title}: "
            + ", ".join(f"{title} {middle_of(v):.1f}" for title, v in found[part].items())
            + ".",
            dots(found[part], Axis(f"accuracy on {part} (%)", span=(0, 100)), task.title),
        )
        for part in shifts.values()
    ]
    return Product(
        title=f"Figure 8: accuracy on other images of the same classes, {task.title}",
        shows=(
            "Right answers on images that nobody trained for, of the classes that were trained. "
            "The paper's caption speaks of detection; what it measures is accuracy. "
            + " ".join(
                f"{part}: {standard_error(len(task.split(0)[part][1]))}" for part in shifts.values()
            )
        ),
        sheet=Sheet(columns, rows),
        comparable=(
            "The paper prints a picture and no numbers: trained on CIFAR-10, asked about 6,400 "
            "images of STL-10 of eight classes that it does not name (the two sets share nine: "
            "`--data cifar10-stl10`)."
        ),
        pictures=pictures,
        notes=[
            finding_of(found[part], part, setup.seeds, compared.titles) for part in shifts.values()
        ]
        + [setup.averaging],
    )


def finding_of(of: dict[str, list[float]], part: str, seeds: int, titles: dict[str, str]) -> str:
    """Whether Bella's rows are ahead of whole networks on a part."""
    bellas = [titles[name] for name in ("svgd-bella", "lora-ensemble") if name in titles]
    wholes = [titles[name] for name in ("single", "ensemble", "svgd") if name in titles]
    middles = {title: float(middle_of(values)) for title, values in of.items()}
    held = (
        max(middles[title] for title in bellas) > max(middles[title] for title in wholes)
        if bellas and wholes
        else None
    )
    return finding(
        "Bella slightly outperforms ensemble and SVGD on all weights on STL-10, and far "
        "outperforms one network",
        f"accuracies on {part} are "
        + ", ".join(f"{title} {value:.1f}%" for title, value in middles.items()),
        held,
        seeds,
    )


ITEM = Item(
    make=make,
    title="accuracy on other images of the same classes",
    methods=("single", "ensemble", "svgd", "lora-ensemble", "svgd-bella", "probe"),
    data=("elpv",),
    train=200,
    others=200,
    cost="about 10 minutes",
)
