"""Table 1: accuracy by data set and method, beside what it costs and what is cheaper."""

from __future__ import annotations

from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value, middle_of
from bella.experiments.paper.rows import BASIC, CONTROLS, CREDIT, THEIRS
from bella.experiments.paper.tables.common import PAPER, percent
from bella.report.charts import Axis
from bella.report.plotted import dots

PUBLISHED = Sheet(
    (
        Column("data"),
        *(
            Column(name, "%", "{:.2f}")
            for name in (
                "Ensemble Bella",
                "SVGD Bella",
                "Single base",
                "VBL",
                "Ensemble base",
                "SVGD base",
            )
        ),
    ),
    (
        ("CIFAR-10", 97.57, 97.95, 97.20, 94.41, 97.54, 97.87),
        ("CIFAR-100", 86.50, 88.09, 86.17, 86.22, 86.89, 87.32),
        ("CAMELYON17", 94.47, 94.89, 92.38, 92.96, 94.23, 95.21),
        ("DomainNet (Real)", 82.70, 84.47, 74.61, 82.97, 85.07, 85.42),
        ("ImageNet", 77.29, 78.24, 76.87, None, 78.93, 79.36),
    ),
)
"""Accuracy with CLIP ViT-B/32, n = 5."""


def make(setup: Setup) -> Product:
    """Accuracy and NLL of every row on every data set."""
    compared = {task.name: setup.compare(task) for task in setup.tasks}
    columns = [Column("method"), PAPER]
    for task in setup.tasks:
        columns += [
            Column(f"{task.name} accuracy", "%", "{:.1f}"),
            Column(f"{task.name} NLL", "nats", "{:.3f}"),
        ]
    first = setup.tasks[0].name
    columns.append(Column(f"trainable parameters, {first}", form="{:,.0f}"))
    columns.append(Column(f"training, {first}", "s", "{:,.0f}"))
    rows, pictures = [], []
    accuracies: dict[str, dict[str, list[float]]] = {name: {} for name in compared}
    for method in setup.methods:
        row: list[Value] = [method.title, THEIRS.get(method.name, "")]
        for name, one in compared.items():
            figures = one.figures(method.name)
            accuracies[name][method.title] = percent(figures["accuracy"])
            row += [percent(figures["accuracy"]), figures["nll"]]
        costs = compared[first].costs(method.name)
        rows.append([*row, middle_of(costs["trainable"]), middle_of(costs["seconds_training"])])
    for task in setup.tasks:
        of = accuracies[task.name]
        said = ", ".join(f"{title} {middle_of(values):.1f}" for title, values in of.items())
        pictures.append(
            Picture(
                task.name if len(setup.tasks) > 1 else "",
                f"Test accuracy in percent on {task.title}: {said}.",
                dots(of, Axis("test accuracy (%)"), task.title),
            )
        )
    return Product(
        title="Table 1: accuracy",
        shows=(
            "Test accuracy of low-rank particles beside whole networks, and beside what the "
            "paper's table lacks: a linear probe, and members that are calibrated. NLL says what "
            "accuracy does not."
        ),
        sheet=Sheet(columns, rows),
        theirs=PUBLISHED,
        comparable=(
            "The two tables share their rows and not their data: the paper's network is CLIP "
            "ViT-B/32, its data are whole, and it trains for more epochs. Compare how rows differ, "
            f"not the accuracies. {CREDIT}"
        ),
        pictures=pictures,
        notes=[setup.averaging],
    )


ITEM = Item(
    make=make,
    title="accuracy by data set and method",
    methods=(*BASIC, *CONTROLS),
    data=("fashion-mnist", "digits"),
    train=200,
    others=200,
    cost="10 minutes",
)
