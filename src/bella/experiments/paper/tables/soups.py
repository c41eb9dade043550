"""Table 7: soups, one network whose weights are the mean of the particles'."""

from __future__ import annotations

from bella.experiments.paper.item import Compared, Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value, middle_of
from bella.experiments.paper.rows import THEIRS
from bella.experiments.paper.tables.common import OTHER_DATA, PAPER, percent, precision_note
from bella.report.charts import Axis
from bella.report.plotted import dots

OF_EACH = ("accuracy", "PE right", "PE wrong")
PUBLISHED = Sheet(
    (
        Column("model"),
        *(
            Column(f"{data} {name}", "%" if name == "accuracy" else "nats", form)
            for data in ("CIFAR-10", "CIFAR-100")
            for name, form in zip(OF_EACH, ("{:.2f}", "{:.4f}", "{:.4f}"), strict=True)
        ),
    ),
    (
        ("Ensemble Bella soup", 95.74, 0.0597, 0.6063, 80.82, 0.3461, 1.2261),
        ("Ensemble base soup", 97.42, 0.0986, 0.6917, 86.42, 0.3025, 1.1148),
        ("SVGD Bella soup", 96.32, 0.0771, 0.6988, 83.59, 0.2935, 1.1044),
        ("SVGD base soup", 97.62, 0.0438, 0.5528, 86.73, 0.2609, 1.0426),
        ("Ensemble base", 97.54, 0.1125, 0.5947, 86.89, 0.3738, 1.0677),
        ("SVGD base", 97.87, 0.0572, 0.4692, 87.32, 0.3256, 1.0015),
        ("Ensemble Bella", 97.58, 0.0685, 0.5098, 86.50, 0.4100, 1.1218),
        ("SVGD Bella", 97.95, 0.0603, 0.5193, 88.09, 0.4000, 1.0915),
    ),
)


def make(setup: Setup) -> Product:
    """Accuracy and predictive entropy of right and wrong answers, of each row."""
    task, compared = setup.task, setup.compare()
    rows: list[list[Value]] = []
    dotted = {}
    for name, title in compared.titles.items():
        figures = compared.figures(name)
        accuracy = percent(figures["accuracy"])
        dotted[title] = accuracy
        entropies = entropies_of(compared, name)
        rows.append([title, THEIRS.get(name, ""), accuracy, *entropies, figures["nll"]])
    said = ", ".join(f"{title} {middle_of(values):.1f}" for title, values in dotted.items())
    return Product(
        title=f"Table 7: soups, {task.title}",
        shows=(
            "One network made of the mean of the particles' weights (of low-rank particles the "
            "mean of B_i A_i) beside the particles themselves: what is lost where one pass is to "
            "do. PE is the mean predictive entropy, of right answers and of wrong ones."
        ),
        sheet=Sheet(
            (
                Column("method"),
                PAPER,
                Column("accuracy", "%", "{:.1f}"),
                Column("PE right", "nats", "{:.4f}"),
                Column("PE wrong", "nats", "{:.4f}"),
                Column("NLL", "nats", "{:.3f}"),
            ),
            rows,
        ),
        theirs=PUBLISHED,
        comparable=OTHER_DATA,
        pictures=[
            Picture(
                "",
                f"Test accuracy in percent of particles and their soups, {task.title}: {said}.",
                dots(dotted, Axis("test accuracy (%)"), task.title),
            )
        ],
        notes=[setup.averaging, precision_note(task)],
    )


def entropies_of(compared: Compared, name: str) -> tuple[list[float], list[float]]:
    """Mean predictive entropy of right and of wrong answers, in nats, a value a seed; NaN where
    there are none."""
    right, wrong = [], []
    for seed in range(compared.seeds):
        predictive, labels = compared.said(name, seed)["test"]
        is_right = predictive.predictions == labels
        right.append(float(predictive.entropy[is_right].mean()))
        wrong.append(float(predictive.entropy[~is_right].mean()))
    return right, wrong


ITEM = Item(
    make=make,
    title="soups of particles",
    methods=(
        *("lora-ensemble-soup", "ensemble-soup", "svgd-bella-soup", "svgd-soup"),
        *("ensemble", "svgd", "lora-ensemble", "svgd-bella", "single"),
    ),
    data=("fashion-mnist",),
    train=200,
    others=200,
    cost="minutes (not measured)",
)
