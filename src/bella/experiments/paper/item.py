"""A table or figure of the paper, and what it is made with."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import bella
from bella.errors import BellaError, nearest
from bella.evaluation.evaluate import known_figures, shifted_figures
from bella.experiments.compare import compare
from bella.experiments.methods import METHODS, Method
from bella.experiments.methods.base import Outputs
from bella.experiments.paper.product import Product
from bella.experiments.paper.rows import AVERAGING, PROBABILITIES, ROWS, averages_logits
from bella.experiments.predictions import read_outputs
from bella.experiments.tasks.task import Task
from bella.files import plain, read_json
from bella.host import device_named
from bella.posterior import Posterior
from bella.prediction.mixture import Mixture, is_there, read_mixture
from bella.prediction.predictive import Average, Predictive
from bella.storage import TENSORS


@dataclass(frozen=True, kw_only=True)
class Item:
    """A table or figure.

    Attributes:
        make: it, of a `Setup`; its further arguments, which are given by name, are its own options.
        title: of the paper's.
        methods: its rows, where nobody says.
        data: names of the tasks that it is made on, where nobody says; none of what needs no data.
        takes_data: whether it can be made on a task.
        trains: whether rows are trained for it by settings, seeds and the like.
        instead: its option that stands for data: where it is given, none are read.
        seeds: how many, where nobody says.
        settings: of `bella.fit`, over the task's, on these data.
        train: training examples at most, of these data.
        others: examples of each other part at most, of these data.
        cost: what all this takes on one core, in words.
    """

    make: Callable[..., Product]
    title: str
    cost: str
    methods: Sequence[str] = ()
    data: Sequence[str] = ()
    takes_data: bool = True
    trains: bool = True
    instead: str = ""
    seeds: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: int | None = None
    others: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Its own options and their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.make).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that it does not have.

        Raises:
            BellaError: there is one.
        """
        for name in options:
            if name not in self.options:
                known = nearest(name, self.options) if self.options else "none"
                raise BellaError(f"{self.title!r} has no option {name!r}: its own are {known}.")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an item is made with.

    Attributes:
        tasks: the data and the networks.
        methods: the rows.
        seeds: how many.
        settings: of `bella.fit`, over the tasks'.
        average: how rows of particles are averaged.
        folder: where comparisons are kept, so that nothing is trained twice.
        progress: show bars.
        device: where everything runs; the accelerator if there is one.
        made: every comparison that the item asked for; filled while it is made.
    """

    tasks: Sequence[Task]
    methods: Sequence[Method]
    folder: Path
    seeds: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    average: Average = "logits"
    progress: bool = False
    device: str | None = None
    made: list[Compared] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """The one task.

        Raises:
            BellaError: there are several.
        """
        if len(self.tasks) != 1:
            named = ", ".join(task.name for task in self.tasks)
            raise BellaError(f"This is made on one data set, and here are several ({named}).")
        return self.tasks[0]

    @property
    def averaging(self) -> str:
        """How rows are averaged, in a sentence."""
        return AVERAGING if self.average == "logits" else PROBABILITIES

    def compare(
        self, task: Task | None = None, methods: Sequence[str | Method] | None = None
    ) -> Compared:
        """Run methods on a task, but those that were run before.

        Args:
            task: the one task where nobody says.
            methods: names or methods; the item's rows where nobody says.
        """
        task = self.task if task is None else task
        chosen = rows_named(self.methods if methods is None else methods)
        folder = self.folder / f"{task.name}-{self._digest(task)}"
        needed = {name: ROWS[name] for row in chosen for name in row.needs if name in ROWS}
        results = compare(
            task,
            [*needed.values(), *chosen],
            seeds=self.seeds,
            folder=folder,
            progress=self.progress,
            device=self.device,
            **self.settings,
        )
        resumed = results["seconds"] is None
        found = Compared(
            task, chosen, folder, self.seeds, self.average, self.device, resumed=resumed
        )
        self.made.append(found)
        return self.made[-1]

    def _digest(self, task: Task) -> str:
        parts = {part: [pool, len(rows)] for part, (pool, rows) in task.split(0).items()}
        pools = {name: len(pool) for name, pool in task.pools.items()}
        known = [task.title, parts, pools, dict(task.settings), dict(self.settings)]
        return hashlib.sha256(json.dumps(plain(known), sort_keys=True).encode()).hexdigest()[:8]


def rows_named(wanted: Sequence[str | Method]) -> list[Method]:
    """Rows by name, those of the paper's tables among them.

    Raises:
        BellaError: an unknown name.
    """
    known = METHODS | ROWS
    for name in wanted:
        if isinstance(name, str) and name not in known:
            raise BellaError(f"method {name!r} is unknown: near names are {nearest(name, known)}.")
    return [known[row] if isinstance(row, str) else row for row in wanted]


@dataclass(frozen=True)
class Compared:
    """What rows said, on one task.

    Attributes:
        task: the data and the network.
        methods: the rows.
        folder: of the comparison.
        seeds: how many.
        average: see `Setup`.
        device: where posteriors are put.
        resumed: whether some of the rows were there already.
    """

    task: Task
    methods: Sequence[Method]
    folder: Path
    seeds: int
    average: Average
    device: str | None = None
    resumed: bool = False

    @cached_property
    def titles(self) -> dict[str, str]:
        """Rows by name, for people."""
        return {method.name: method.title for method in self.methods}

    def said(self, name: str, seed: int = 0) -> Outputs:
        """For each part of the data but the training part: the predictive, and the labels."""
        outputs = read_outputs(self.folder / "runs" / f"{name}-{seed}")
        (method,) = (method for method in self.methods if method.name == name)
        if not averages_logits(method):
            return outputs
        return {
            part: (Predictive(predictive.logits, average=self.average), labels)
            for part, (predictive, labels) in outputs.items()
        }

    def figures(self, name: str, part: str = "test") -> dict[str, list[float]]:
        """The figures of a row on a part of the data, a value a seed.

        Args:
            name: of the row.
            part: of the data; of another one than ``test`` also how it is told from that.
        """
        found: dict[str, list[float]] = {}
        for seed in range(self.seeds):
            said = self.said(name, seed)
            own = (
                known_figures(*said["test"])
                if part == "test"
                else shifted_figures(*said["test"], *said[part])
            )
            for figure, value in own.items():
                found.setdefault(figure, []).append(value)
        return found

    def costs(self, name: str) -> dict[str, list[float]]:
        """What a row costs, a value a seed (see `bella.experiments.methods.base.Costs`)."""
        found: dict[str, list[float]] = {}
        for seed in range(self.seeds):
            kept = read_json(self._run(name, seed) / "figures.json")["costs"]
            for cost, value in kept.items():
                found.setdefault(cost, []).append(float("nan") if value is None else value)
        return found

    def posterior(self, name: str, seed: int = 0) -> Posterior:
        """The posterior that a row trained, on a fresh network.

        Raises:
            BellaError: the row keeps none: a probe, a soup, a pool.
        """
        folder = self._run(name, seed) / "posterior"
        if not (folder / TENSORS).exists():
            raise BellaError(f"The row {name!r} keeps no posterior: leave it out.")
        return bella.load(folder, self.task.open(seed).network.to(device_named(self.device)))

    def predicts(self, name: str, seed: int = 0) -> Posterior | Mixture:
        """What a row predicts with: its posterior, or the mixture around it.

        Raises:
            BellaError: see `posterior`.
        """
        folder, posterior = self._run(name, seed) / "posterior", self.posterior(name, seed)
        return read_mixture(folder, posterior) if is_there(folder) else posterior

    def _run(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"{name}-{seed}"
