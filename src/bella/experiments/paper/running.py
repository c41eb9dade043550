"""Make a table or figure of the paper: choose what it is made with, make it, write it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from bella.errors import BellaError
from bella.experiments.paper.item import Item, Setup, rows_named
from bella.experiments.paper.product import Product
from bella.experiments.paper.writing import as_json, write_product
from bella.experiments.tasks import task_named
from bella.experiments.tasks.smaller import smaller
from bella.experiments.tasks.task import Task
from bella.files import plain
from bella.host import versions
from bella.prediction.predictive import Average


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody asks for; ``None`` leaves it to the item.

    Attributes:
        tasks: the data and the networks. The item's small sizes and settings are for its own data.
        methods: names of rows.
        seeds: how many.
        settings: of `bella.fit`.
        train: training examples at most.
        others: examples of each other part at most.
        options: the item's own.
        average: see `Setup`.
        comparisons: folder of the trained rows.
        progress: show bars.
        device: where everything runs; the accelerator if there is one.
    """

    comparisons: Path
    tasks: Sequence[Task] | None = None
    methods: Sequence[str] | None = None
    seeds: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: int | None = None
    others: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    average: Average = "logits"
    progress: bool = False
    device: str | None = None


def setup_of(item: Item, asked: Asked) -> Setup:
    """What an item is made with.

    Raises:
        BellaError: options that it does not have, unknown rows, data for an item that needs none.
    """
    item.check_options(asked.options)
    if asked.average not in ("logits", "probs"):
        raise BellaError(f"average={asked.average!r}: choose 'logits' or 'probs'.")
    if asked.seeds is not None and asked.seeds < 1:
        raise BellaError(f"seeds={asked.seeds}: give a whole number of at least 1.")
    if asked.tasks is not None and not item.takes_data:
        raise BellaError(f"{item.title!r} is made without data: leave out what names some.")
    if asked.methods is not None and not item.methods:
        raise BellaError(f"{item.title!r} has rows of its own: leave out methods.")
    if (asked.settings or asked.seeds is not None) and not item.trains:
        raise BellaError(f"{item.title!r} trains no rows: leave out seeds and epochs.")
    instead = bool(item.instead and asked.options.get(item.instead))
    if asked.tasks is not None and instead:
        raise BellaError(f"--option {item.instead} stands for data: leave out what names others.")
    seeds = asked.seeds or item.seeds
    own = asked.tasks is None
    usual = () if instead else item.data
    tasks = [task_named(name) for name in usual] if asked.tasks is None else asked.tasks
    train = asked.train if asked.train is not None or not own else item.train
    others = asked.others if asked.others is not None or not own else item.others
    return Setup(
        tasks=[smaller(task, seeds, train=train, others=others) for task in tasks],
        methods=rows_named(item.methods if asked.methods is None else asked.methods),
        folder=asked.comparisons,
        seeds=seeds,
        settings=(dict(item.settings) if own else {}) | dict(asked.settings),
        average=asked.average,
        progress=asked.progress,
        device=asked.device,
    )


def fitting(item: Item, asked: Asked) -> Asked:
    """Of what is asked of several items, what this one takes."""
    known = item.options
    instead = bool(item.instead and asked.options.get(item.instead))
    return replace(
        asked,
        tasks=asked.tasks if item.takes_data and not instead else None,
        methods=asked.methods if item.methods else None,
        settings=asked.settings if item.trains else {},
        seeds=asked.seeds if item.trains else None,
        options={name: value for name, value in asked.options.items() if name in known},
    )


def make(item: Item, name: str, folder: Path, asked: Asked, command: str) -> dict[str, Any]:
    """Make an item and write it.

    Args:
        item: of `bella.experiments.paper.TABLES` or ``FIGURES``.
        name: of the files, such as ``table-2``.
        folder: for the files.
        asked: what somebody asks for.
        command: what was typed.

    Returns:
        What NAME.json holds.

    Raises:
        BellaError: see `setup_of`, and what the item itself refuses.
    """
    begun = time.perf_counter()
    setup = setup_of(item, asked)
    product: Product = item.make(setup, **asked.options)
    made = {"command": command, **facts(item, setup, asked)}
    made["seconds"] = round(time.perf_counter() - begun, 1)
    if any(compared.resumed for compared in setup.made):
        made["not in the seconds"] = "the training of rows that were there already"
    write_product(product, name, folder, made)
    found: dict[str, Any] = plain(as_json(product, name, made))
    return found


def facts(item: Item, setup: Setup, asked: Asked) -> dict[str, Any]:
    """What a reader needs to make it again."""
    found: dict[str, Any] = {}
    if setup.tasks:
        found["data and networks"] = [task.title for task in setup.tasks]
        found["examples"] = [
            {part: len(rows) for part, (_, rows) in task.split(0).items()} for task in setup.tasks
        ]
        found["training"] = [task.settings_with(setup.settings) for task in setup.tasks]
        found["seeds"] = list(range(setup.seeds))
    if item.methods:
        found["rows"] = [method.name for method in setup.methods]
    every = item.options | dict(asked.options)
    options = {name: value for name, value in every.items() if value is not None}
    if options:
        found["options"] = options
    known = versions(asked.device)
    return found | {"machine": known.pop("machine"), "versions": known, "date": f"{date.today()}"}
