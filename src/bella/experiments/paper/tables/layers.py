"""Table 6: which layers change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bella.errors import BellaError
from bella.experiments.methods.low_rank import LowRank
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value, middle_of
from bella.experiments.paper.tables.common import OTHER_DATA, percent, precision_note
from bella.experiments.tasks.task import Task
from bella.models import Defaults
from bella.models.opened import Opened
from bella.particles.targets import find, whole
from bella.report.charts import Axis
from bella.report.plotted import dots

PUBLISHED = Sheet(
    (
        Column("FC of blocks"),
        Column("Proj. of blocks"),
        Column("trainable parameters"),
        Column("accuracy", "%", "{:.2f}"),
    ),
    (
        ("0-11", "0-11", "1.85M", 94.89),
        ("0-11", "-", "925K", 95.11),
        ("-", "0-11", "925K", 95.83),
        ("0-5", "0-5", "925K", 92.7),
        ("6-11", "6-11", "925K", 91.39),
    ),
)
"""On CAMELYON17, r = 4, n = 5."""


def make(setup: Setup, *, layers: Sequence[str] | None = None) -> Product:
    """Every row of particles once for each choice of layers.

    Args:
        setup: rows of low-rank particles alone.
        layers: those to choose among, in place of the task's, as ``target_modules``.

    Raises:
        BellaError: a row that adapts no layers.
    """
    task = setup.task if layers is None else adapting(setup.task, layers)
    opened = task.open(0)
    groups = choices(find(opened.network, opened.defaults.target_modules))
    variants: list[tuple[LowRank, str, str]] = []
    for method in setup.methods:
        if not isinstance(method, LowRank):
            raise BellaError(f"{method.name!r} adapts no layers: choose rows of particles.")
        for number, (group, names) in enumerate(groups.items()):
            some = tuple(whole(name) for name in names)
            named = replace(method, name=f"{method.name}-layers-{number}", targets=some)
            variants.append((named, group, ", ".join(names) if len(names) < 4 else f"{len(names)}"))
    compared = setup.compare(task, [variant for variant, _, _ in variants])
    rows: list[list[Value]] = []
    for variant, group, which in variants:
        figures = compared.figures(variant.name)
        trainable = middle_of(compared.costs(variant.name)["trainable"])
        accuracy = percent(figures["accuracy"])
        rows.append([variant.title, group, which, trainable, accuracy, figures["nll"]])
    dotted = {f"{row[0]}: {row[1]}": row[4] for row in rows}
    said = ", ".join(f"{name} {middle_of(values):.1f}" for name, values in dotted.items())
    return Product(
        title=f"Table 6: which layers change, {task.title}",
        shows=(
            "Test accuracy and NLL where all of the task's layers have low-rank changes, those of "
            "one role, or those of the first or last half of its blocks. Trainable parameters "
            "count the particles' own heads as well."
        ),
        sheet=Sheet(
            (
                Column("method"),
                Column("layers that change"),
                Column("which, or how many"),
                Column("trainable parameters", form="{:,.0f}"),
                Column("accuracy", "%", "{:.1f}"),
                Column("NLL", "nats", "{:.3f}"),
            ),
            rows,
        ),
        theirs=PUBLISHED,
        comparable=(
            f"{OTHER_DATA} The paper's rows are one run each, so that nobody knows by how much "
            "they differ by chance."
        ),
        pictures=[
            Picture(
                "",
                f"Test accuracy in percent by the layers that change, {task.title}: {said}.",
                dots(dotted, Axis("test accuracy (%)"), task.title),  # type: ignore[arg-type]
            )
        ],
        notes=[setup.averaging, precision_note(task)],
    )


def choices(names: Sequence[str]) -> dict[str, list[str]]:
    """The paper's choices among layers: all, those of one role (the last part of their names), and
    the halves of their blocks (what stands before it)."""
    roles = dict.fromkeys(name.rpartition(".")[2] for name in names)
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    first = set(blocks[: len(blocks) // 2])
    found = {"all": list(names)}
    if len(roles) > 1:
        found |= {
            f"{role} alone": [name for name in names if name.rpartition(".")[2] == role]
            for role in roles
        }
    if len(blocks) > 1:
        found["first half"] = [name for name in names if name.rpartition(".")[0] in first]
        found["last half"] = [name for name in names if name.rpartition(".")[0] not in first]
    # Two choices may be of the same layers: the last half may be one layer.
    first_of: dict[tuple[str, ...], str] = {}
    for group, some in found.items():
        first_of.setdefault(tuple(some), group)
    return {group: list(some) for some, group in first_of.items()}


def adapting(task: Task, layers: Sequence[str]) -> Task:
    """The task with other layers to change."""

    def open_it(seed: int) -> Opened:
        opened = task.open(seed)
        return opened._replace(  # type: ignore[return-value]
            defaults=Defaults(tuple(layers), opened.defaults.modules_to_save)
        )

    return replace(task, title=f"{task.title} ({', '.join(layers)})", open=open_it)


ITEM = Item(
    make=make,
    title="which layers change",
    methods=("svgd-bella",),
    data=("elpv",),
    train=200,
    others=200,
    cost="1 minute",
)
