"""Table 11: the settings of every row, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bella.console import progress_bar
from bella.experiments.bench import Bench
from bella.experiments.methods import Method
from bella.experiments.methods.low_rank import LowRank, built
from bella.experiments.methods.trained import Trained
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Product, Sheet
from bella.experiments.paper.rows import BASIC, THEIRS
from bella.experiments.tasks.task import Task

PUBLISHED = Sheet(
    (Column("name"), Column("value"), Column("notes")),
    (
        ("r", "ImageNet: 16, others: 4", "rank values"),
        ("γ", "0.01", "weight to control the repulsive force"),
        ("n", "5", "number of particles"),
        ("optimizer", "AdamW", "with adaptive scheduler"),
    ),
)

IN_THEIRS = {
    "particles": "5",
    "rank": "4 (ImageNet: 16)",
    "γ": "0.01",
    "optimizer": "AdamW, with adaptive scheduler",
    "schedule": "not said; released code: warm-up of 500 steps, cosine",
    "epochs": "not said; released code: 7",
    "batch size": "not said; released code: 128",
    "learning rate": "not said; released code: .001, .0009, .0005, .00025, .0008, one a particle",
    "weight decay": "not said; released code: 0.1",
    "clip": "not said",
    "alpha / rank": "not said; released code: 16 / 4",
    "A's start": "not said; released code: kaiming",
    "B's start": "not said; released code: 0",
    "kept epoch": "not said; released code: best validation loss of each particle",
}
"""The paper's values by our names, with what its released code does where it does not say."""


def make(setup: Setup) -> Product:
    """Every setting of every row that is trained, as this table's other flags would train it."""
    task = setup.task
    with progress_bar(False) as bar:
        bench = Bench(task, setup.folder, task.settings_with(setup.settings), bar)
        trained = [method for method in setup.methods if isinstance(method, Trained)]
        rows = [settings_of(bench, method, task) for method in trained]
    names = dict.fromkeys(name for settings in rows for name in settings)
    return Product(
        title=f"Table 11: settings, {task.title}",
        shows=(
            "What each trained row is trained with, and the paper's value where it says one. T is "
            "the temperature of the repulsion; γ = T n / N."
        ),
        sheet=Sheet(
            (
                Column("setting"),
                Column("the paper"),
                *(Column(called(method)) for method in trained),
            ),
            [
                [name, IN_THEIRS.get(name, ""), *(own.get(name, "-") for own in rows)]
                for name in names
            ],
        ),
        theirs=PUBLISHED,
        comparable=(
            "The paper's table names four values. What it does not say is marked, with what its "
            "released code does; there the schedule's step moves the last particle's optimiser "
            "alone, so that the other particles train at a constant rate."
        ),
    )


def called(method: Method) -> str:
    """A row's title, with the paper's word for it."""
    theirs = THEIRS.get(method.name)
    return method.title if theirs is None else f"{method.title}: {theirs}"


def settings_of(bench: Bench, method: Trained, task: Task) -> Mapping[str, str]:
    """Settings by name, as text."""
    chosen = method.settings_on(bench)
    count, n = len(task.split(0)["train"][1]), method.particles
    options: dict[str, Any] = chosen["transport_options"]
    found = {"particles": f"{n}", "trains": trains(method)}
    if isinstance(method, LowRank):
        build = {"rank": task.rank} | built(bench, method)
        alpha = build.get("alpha") or build["rank"]
        found |= {
            "rank": f"{build['rank']}",
            "alpha / rank": f"{alpha} / {build['rank']}",
            "A's start": f"{build.get('init', 'kaiming')}, times {build.get('gain', 1.0):g}",
            "B's start": f"{build.get('b_std', 0.0):g}",
        }
    found["transport"] = chosen["transport"]
    if chosen["transport"] != "ensemble":
        gamma = options.get("gamma")
        heat = options.get("temperature", 1.0) if gamma is None else gamma * count / n
        found["γ"] = f"{heat * n / count:.3g}"
        found["T"] = f"{heat:.3g}"
    return found | {
        "optimizer": "AdamW",
        "schedule": f"rise over {chosen['warmup']:.0%} of the steps, cosine to 0",
        "epochs": f"{chosen['epochs']}",
        "batch size": f"{chosen['batch_size']}",
        "learning rate": f"{chosen['learning_rate']:g}",
        "weight decay": f"{chosen['weight_decay']:g}",
        "clip": f"{chosen['clip']}",
        "kept epoch": f"{chosen['keep']}, by validation NLL of all particles together",
    }


def trains(method: Method) -> str:
    """What of the network a row trains."""
    return "low-rank changes and heads" if isinstance(method, LowRank) else "weights of layers"


ITEM = Item(
    make=make,
    title="settings of every row",
    methods=(*BASIC, "repulsive"),
    data=("elpv",),
    train=200,
    others=200,
    cost="seconds",
)
