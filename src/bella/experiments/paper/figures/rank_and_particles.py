"""Figure 4: what a higher rank and more particles bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from bella.errors import BellaError
from bella.experiments.methods import Method
from bella.experiments.methods.low_rank import LowRank
from bella.experiments.paper.figures.common import finding, standard_error
from bella.experiments.paper.item import Compared, Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value, middle_of
from bella.report.charts import Axis, Line
from bella.report.plotted import Panel, plotted

RANKS = (1, 2, 4, 16)
PARTICLES = (1, 2, 5, 10)
DRAWN: dict[str, tuple[str, Literal["percent", "number"]]] = {
    "accuracy": ("right answers", "percent"),
    "nll": ("NLL (nats)", "number"),
}
Sweep = Mapping[int, Mapping[str, Sequence[float]]]
"""By the number that is varied, the figures of each seed."""


def make(
    setup: Setup, *, ranks: Sequence[int] = RANKS, particles: Sequence[int] = PARTICLES
) -> Product:
    """One row at several ranks, and with several numbers of particles."""
    if len(setup.methods) != 1 or not isinstance(row := setup.methods[0], LowRank):
        raise BellaError("Figure 4 varies one row of low-rank particles: choose one, by --methods.")
    by_rank = {rank: of_rank(row, rank) for rank in sorted(set(ranks))}
    by_number = {number: of_particles(row, number) for number in sorted(set(particles))}
    compared = setup.compare(methods=[*by_rank.values(), *by_number.values()])
    swept = {
        "rank r": sweep(compared, by_rank),
        "particles n": sweep(compared, by_number),
    }
    fixed = {"rank r": f"n = {row.particles}", "particles n": f"r = {setup.task.rank}"}
    drawn = [(name, what) for name in DRAWN for what in swept]
    figure = plotted(
        [sweep_panel(swept[what], f"{what} ({fixed[what]})", name) for name, what in drawn]
    )
    for axis, (_, what) in zip(figure.axes, drawn, strict=True):
        ticks_at(axis, list(swept[what]))
    alt = " ".join(sweep_said(swept[what], what, name) for name, what in drawn)
    return Product(
        title=f"Figure 4: rank and number of particles, {setup.task.title}",
        shows=(
            f"Test accuracy and NLL of {row.title}, at several ranks and with several numbers of "
            "particles. Faint points are single seeds. The scale of a low-rank change is 1 at "
            f"every rank (alpha = r). {standard_error(len(setup.task.split(0)['test'][1]))}"
        ),
        sheet=sheet_of(swept),
        comparable=(
            "The paper prints a picture and no numbers: ranks on CAMELYON17, particles on "
            "CIFAR-10, CLIP ViT-B/32. Its text says that the accuracy rises to r = 4 and is flat "
            "from r = 16 on, and rises with the number of particles."
        ),
        pictures=[Picture("", alt, figure)],
        notes=[*findings(swept, setup.seeds), setup.averaging],
    )


def of_rank(row: LowRank, rank: int) -> LowRank:
    """The same row at another rank.

    Raises:
        BellaError: it is none.
    """
    if rank < 1:
        raise BellaError(f"rank={rank}: give whole numbers of at least 1.")
    return replace(
        row,
        name=f"{row.name}-r{rank}",
        title=f"{row.title}, r = {rank}",
        build={**row.build, "rank": rank},
    )


def of_particles(row: LowRank, particles: int) -> LowRank:
    """The same row with another number of particles.

    Raises:
        BellaError: there are none.
    """
    if particles < 1:
        raise BellaError(f"particles={particles}: give whole numbers of at least 1.")
    return replace(
        row,
        name=f"{row.name}-n{particles}",
        title=f"{row.title}, n = {particles}",
        particles=particles,
    )


def sweep(compared: Compared, rows: Mapping[int, Method]) -> dict[int, dict[str, list[float]]]:
    """Figures and costs of each row."""
    return {
        number: compared.figures(row.name) | compared.costs(row.name)
        for number, row in rows.items()
    }


def sweep_panel(swept: Sweep, what: str, name: str, x: Mapping[int, float] | None = None) -> Panel:
    """One figure against what is varied: the mean over seeds, and each of several seeds.

    Args:
        swept: the figures.
        what: is varied.
        name: of the figure, in `DRAWN`.
        x: where each number stands; at itself where nobody says.
    """
    words, form = DRAWN[name]
    places = {number: float(number) if x is None else x[number] for number in swept}
    middles = [float(middle_of(of[name])) for of in swept.values()]
    lines = [Line(words, list(places.values()), middles, 0, "marked")]
    if any(len(of[name]) > 1 for of in swept.values()):
        x_of = [places[number] for number, of in swept.items() for _ in of[name]]
        values = [value for of in swept.values() for value in of[name]]
        lines.append(Line("each seed", x_of, values, None, "points"))
    return Panel("", Axis(what, "log"), Axis(words, form), lines)


def sweep_said(swept: Sweep, what: str, name: str) -> str:
    """`sweep_panel` in a sentence, for those who do not see it."""
    words, form = DRAWN[name]
    shown = ".1%" if form == "percent" else ".3f"
    middles = {number: middle_of(of[name]) for number, of in swept.items()}
    said = ", ".join(f"{number}: {value:{shown}}" for number, value in middles.items())
    return f"{words[0].upper()}{words[1:]} by {what}: {said}."


def ticks_at(axis: Any, values: Sequence[int]) -> None:
    """Ticks of a logarithmic axis at what was tried, in plain numbers."""
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()


def sheet_of(swept: Mapping[str, Sweep]) -> Sheet:
    """The numbers behind the picture."""
    columns = (
        Column("varied"),
        Column("value"),
        Column("accuracy", "%", "{:.1f}"),
        Column("NLL", "nats", "{:.3f}"),
        Column("diversity", "nats", "{:.4f}"),
        Column("trainable parameters", form="{:,.0f}"),
        Column("training", "s", "{:.1f}"),
    )
    rows: list[list[Value]] = [
        [
            what.split()[0],
            str(number),
            [100 * value for value in of["accuracy"]],
            of["nll"],
            of["diversity"],
            float(middle_of(of["trainable"])),
            of["seconds_training"],
        ]
        for what, numbers in swept.items()
        for number, of in numbers.items()
    ]
    return Sheet(columns, rows)


def findings(swept: Mapping[str, Sweep], seeds: int) -> list[str]:
    """Whether accuracy rises as the paper says."""
    found = []
    for what, claim in (
        ("rank r", "accuracy rises clearly from the lowest rank to r = 4 and is flat from 16 on"),
        ("particles n", "accuracy rises with the number of particles"),
    ):
        of = {number: float(middle_of(own["accuracy"])) for number, own in swept[what].items()}
        nll = {number: float(middle_of(own["nll"])) for number, own in swept[what].items()}
        low, high = min(of), max(of)
        here = (
            f"accuracy goes from {of[low]:.1%} at {low} to {of[high]:.1%} at {high} "
            f"(best {max(of.values()):.1%} at {max(of, key=lambda n: of[n])}), and NLL from "
            f"{nll[low]:.3f} to {nll[high]:.3f}"
        )
        found.append(
            finding(f"{claim} ({what})", here, of[high] > of[low] if low != high else None, seeds)
        )
    return found


ITEM = Item(
    make=make,
    title="what a higher rank and more particles bring",
    methods=("svgd-bella",),
    data=("elpv",),
    train=200,
    others=200,
    cost="4 minutes",
)
