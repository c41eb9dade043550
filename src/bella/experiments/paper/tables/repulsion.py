"""Table 8: strength of the repulsion against the budget of an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bella import metrics
from bella.errors import BellaError
from bella.evaluation.attacks import attacked, check_budget
from bella.experiments.methods import METHODS, Method
from bella.experiments.methods.low_rank import LowRank
from bella.experiments.paper.item import Compared, Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value, middle_of
from bella.experiments.paper.rows import svgd_bella
from bella.experiments.paper.tables.common import OTHER_DATA, percent, precision_note
from bella.models.opened import Opened
from bella.report.charts import Axis, Line
from bella.report.plotted import Panel, plotted

BUDGETS = (0.001, 0.005, 0.01, 0.03)
GAMMAS = (0.0, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3)
PUBLISHED = Sheet(
    (Column("γ", form="{:g}"), *(Column(f"budget {b:g}", "%", "{:.1f}") for b in BUDGETS)),
    (
        (0.01, 53.7, 50.4, 48.1, 40.9),
        (0.025, 54.9, 51.3, 49.2, 41.8),
        (0.05, 56.1, 53.7, 51.2, 42.5),
        (0.1, 54.4, 51.9, 48.1, 42.0),
        (0.2, 55.0, 50.6, 47.3, 40.7),
        (0.3, 54.2, 52.6, 49.6, 42.5),
    ),
)
"""On CIFAR-10, r = 16, n = 5."""


def make(
    setup: Setup,
    *,
    gammas: Sequence[float] = GAMMAS,
    budgets: Sequence[float] = BUDGETS,
    rank: int = 16,
    attack: str = "fgsm",
) -> Product:
    """Accuracy of particles that repel each other by each γ, under an L-infinity attack.

    Args:
        setup: of images.
        gammas: the paper's strength; 0 is the plain ensemble.
        budgets: the most that a pixel in [0, 1] moves.
        rank: of the particles.
        attack: of `bella.evaluation.attacks.ATTACKS`, on the gradient of the predictive.

    Raises:
        BellaError: data that are no images, or a budget below 0.
    """
    task = setup.task
    if not isinstance(task.open(0), Opened):
        raise BellaError(f"{task.title} holds no images: an attack moves pixels.")
    for budget in budgets:
        check_budget(budget)
    rows = [with_rank(svgd_bella(gamma, f"gamma-{gamma:g}"), rank) for gamma in gammas]
    recipe = METHODS["repulsive"]
    assert isinstance(recipe, LowRank)
    rows.append(with_rank(replace(recipe, name=f"repulsive-{rank}"), rank))
    compared = setup.compare(task, rows)
    count = len(task.split(0)["train"][1])
    lines: list[list[Value]] = []
    for row in rows:
        gamma, heat = strength_of(row, count)
        figures = compared.figures(row.name)
        by_budget = [percent(under_attack(compared, row, budget, attack)) for budget in budgets]
        clean, mi = percent(figures["accuracy"]), figures["mutual_information"]
        lines.append([row.title, f"{gamma:.3g}", heat, clean, *by_budget, mi])
    drawn = [
        Line(f"γ={line[1]}", list(budgets), [middle_of(v) / 100 for v in line[4:-1]], at, "marked")
        for at, line in enumerate(lines)
    ]
    ends = ", ".join(f"{one.name} {100 * one.y[0]:.1f} to {100 * one.y[-1]:.1f}" for one in drawn)
    panel = Panel(
        task.title, Axis("budget (of a pixel in [0, 1])"), Axis("accuracy", "percent"), drawn
    )
    return Product(
        title=f"Table 8: strength of the repulsion under attack, {task.title}",
        shows=(
            f"Accuracy under {attack.upper()} on the gradient of what all particles say together, "
            "by the strength γ of the repulsion (T = γ N / n). γ = 0 is the plain ensemble, the "
            "last row the strength of the recipe; without a difference to γ = 0 nothing was "
            "bought."
        ),
        sheet=Sheet(
            (
                Column("method"),
                Column("γ"),
                Column("T", form="{:.3g}"),
                Column("clean", "%", "{:.1f}"),
                *(Column(f"budget {budget:g}", "%", "{:.1f}") for budget in budgets),
                Column("MI, clean", "nats", "{:.4f}"),
            ),
            lines,
        ),
        theirs=PUBLISHED,
        comparable=(
            f"{OTHER_DATA} γ is comparable only through T = γ N / n: the paper's N is 40,000. "
            "Its released code does not couple as its text says, so its order of rows is not one "
            "of repulsion."
        ),
        pictures=[
            Picture(
                "",
                f"Accuracy in percent from the least budget to the largest: {ends}.",
                plotted([panel]),
            )
        ],
        notes=[setup.averaging, precision_note(task)],
    )


def with_rank(row: LowRank, rank: int) -> LowRank:
    """A row of another rank than the task's."""
    return replace(row, build={**row.build, "rank": rank})


def strength_of(row: LowRank, data_size: int) -> tuple[float, float]:
    """γ and T = γ N / n of a row, whichever of the two it is given by."""
    options = row.settings["transport_options"]
    if "gamma" in options:
        return options["gamma"], options["gamma"] * data_size / row.particles
    return options["temperature"] * row.particles / data_size, options["temperature"]


def under_attack(compared: Compared, row: Method, budget: float, attack: str) -> list[float]:
    """Accuracy, a value a seed."""
    found = []
    for seed in range(compared.seeds):
        opened: Any = compared.task.open(seed)
        predictive, labels = attacked(
            compared.posterior(row.name, seed),
            compared.task.part("test", seed),
            budget,
            attack=attack,
            preprocess=opened.preprocess,
            average=compared.average,
        )
        found.append(metrics.accuracy(predictive.probs, labels))
    return found


ITEM = Item(
    make=make,
    title="strength of the repulsion against the budget of an attack",
    data=("digits",),
    train=200,
    others=200,
    cost="2 minutes",
)
