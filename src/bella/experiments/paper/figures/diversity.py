"""Figure 7: how much the particles' answers differ."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bella import metrics
from bella.experiments.paper.figures.common import finding
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value, middle_of
from bella.prediction.predictive import Predictive
from bella.report.charts import Axis, density_chart
from bella.report.plotted import dots, plotted


def make(setup: Setup) -> Product:
    """Diversity by row: its mean, and its density over the test examples."""
    compared = setup.compare()
    figures = {title: compared.figures(name) for name, title in compared.titles.items()}
    means = {title: own["diversity"] for title, own in figures.items()}
    each = {title: apart(compared.said(name)["test"][0]) for name, title in compared.titles.items()}
    columns = (
        Column("system"),
        Column("diversity", "nats", "{:.4f}"),
        Column("disagreement", "%", "{:.1f}"),
        Column("accuracy", "%", "{:.1f}"),
        Column("NLL", "nats", "{:.3f}"),
    )
    rows: list[list[Value]] = [
        [
            title,
            own["diversity"],
            [100 * value for value in own["disagreement"]],
            [100 * value for value in own["accuracy"]],
            own["nll"],
        ]
        for title, own in figures.items()
    ]
    said = ", ".join(f"{title} {middle_of(values):.3g}" for title, values in means.items())
    density = density_chart(
        "diversity", "each test example, seed 0", "", each, "diversity", setup.task.title
    )
    density = replace(density, lines=[replace(line, kind="line") for line in density.lines])
    values: list[list[Value]] = [
        [title, float(f"{value:.4g}")] for title, own in each.items() for value in own.tolist()
    ]
    return Product(
        title=f"Figure 7: diversity, {setup.task.title}",
        shows=(
            "Diversity is the mean over examples and particles of KL(p ‖ p_i) with p = mean p_i: 0 "
            "where all particles say the same. Disagreement is the share of examples on which two "
            "particles name different classes."
        ),
        sheet=Sheet(columns, rows),
        comparable=(
            "The paper prints a picture and no numbers: CLIP ViT-B/32 on CIFAR-10's 10,000 test "
            "images. Being diverse is no merit by itself: read it beside accuracy and NLL."
        ),
        pictures=[
            Picture(
                "",
                f"Mean diversity in nats on {setup.task.title}: {said}.",
                dots(means, Axis("diversity, mean KL(p ‖ p_i) (nats)"), setup.task.title),
            ),
            Picture("density", density.alt, plotted([density])),
        ],
        notes=[*as_diverse(means, setup.seeds)],
        more={"values": Sheet((Column("system"), Column("diversity", "nats", "{:.4g}")), values)},
    )


def apart(predictive: Predictive) -> Tensor:
    """mean_i KL(p ‖ p_i) of each example, p = mean_i p_i: (examples,)."""
    particles = predictive.particle_probs.double()
    return metrics.kl(particles.mean(0), particles).mean(0)


def as_diverse(means: dict[str, list[float]], seeds: int) -> list[str]:
    """Whether the first system is at least as diverse as the second."""
    if len(means) < 2:
        return []
    first, second = list(means)[:2]
    ours, theirs = (float(middle_of(means[title])) for title in (first, second))
    return [
        finding(
            "SVGD Bella is as diverse as SVGD on all weights, or slightly more",
            f"the diversity of {first} is {ours:.4f} and that of {second} {theirs:.4f} nats",
            ours >= theirs,
            seeds,
        )
    ]


ITEM = Item(
    make=make,
    title="diversity of the particles",
    methods=("svgd-bella", "svgd", "lora-ensemble", "ensemble"),
    data=("digits",),
    seeds=1,
    train=200,
    others=200,
    cost="2 minutes",
)
