"""A task: a network to adapt, the parts of a data set, and which of them are shifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from bella.data.images import Preprocess
from bella.errors import BellaError, nearest
from bella.models import Opened, open_network


@dataclass(frozen=True)
class Task:
    """What methods are compared on.

    Attributes:
        name: for file names and titles.
        title: for people.
        open: a fresh network for a seed.
        parts: ``train``, ``validation``, ``test`` and the shifted ones.
        shifts: the shifted parts, by the name that their figures carry; each is told from ``test``.
        settings: of `bella.fit`, for every method alike; chosen on validation data.
        build: of `bella.low_rank`, for every method alike; chosen on validation data as well.
        rank: of the low-rank changes.
    """

    name: str
    title: str
    open: Callable[[int], Opened]
    parts: Mapping[str, Dataset]
    shifts: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 4

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.parts["train"].classes  # type: ignore[attr-defined]


def elpv_task(shift_limit: int = 600) -> Task:
    """Solar cells: train on mono cells that the experts agreed on; doubt and poly are shifts.

    Args:
        shift_limit: polycrystalline cells to test on, a stratified choice of the 1,322.
    """
    from bella.data import elpv

    open_lite = _opener("efficientnet-lite0", 2, 160)
    parts: dict[str, Any] = dict(elpv(open_lite(0).preprocess))
    share = shift_limit / len(parts["poly"])
    if share < 1:
        parts["poly"] = parts["poly"].split({"in": share, "out": 1 - share}, 0)["in"]
    del parts["poly_doubt"]
    return Task(
        "elpv",
        "ELPV solar cells, EfficientNet-Lite0",
        open_lite,
        parts,
        {"doubt": "doubt", "shift": "poly"},
        {"epochs": 3, "learning_rate": 1e-3},
        {"head_init": "reset", "gain": 5.0},
    )


def fashion_task() -> Task:
    """Fashion-MNIST, about 1,000 training images; noise is the shift."""
    from bella.data import fashion_mnist

    open_lite = _opener("efficientnet-lite0", 10, 96)
    parts: dict[str, Any] = dict(fashion_mnist(open_lite(0).preprocess, limit=1000))
    for name, count in (("validation", 500), ("test", 1000), ("corrupted", 1000)):
        share = count / len(parts[name])
        parts[name] = parts[name].split({"in": share, "out": 1 - share}, 0)["in"]
    return Task(
        "fashion-mnist",
        "Fashion-MNIST (1,000 training images), EfficientNet-Lite0",
        open_lite,
        parts,
        {"shift": "corrupted"},
        {"epochs": 3, "learning_rate": 1e-3},
        {"head_init": "reset", "gain": 5.0},
    )


def folder_task(path: str | Path, network: str, *, image_size: int | None = None) -> Task:
    """Anybody's folder or CSV of images (see `bella.data.folder`)."""
    from bella.data import splits

    classes = len(splits(path, Preprocess(32))["train"].classes)
    opener = _opener(network, classes, image_size)
    return Task(Path(path).stem, str(path), opener, splits(path, opener(0).preprocess), {})


TASKS: dict[str, Callable[[], Task]] = {"elpv": elpv_task, "fashion-mnist": fashion_task}


def task_named(name: str) -> Task:
    """One of the demos' tasks.

    Raises:
        BellaError: there is none of that name.
    """
    if name not in TASKS:
        raise BellaError(f"data {name!r} is unknown: choose {nearest(name, TASKS)}.")
    return TASKS[name]()


def _opener(network: str, classes: int, image_size: int | None) -> Callable[[int], Opened]:
    def open_it(seed: int) -> Opened:
        return open_network(network, classes, image_size=image_size, seed=seed)

    return open_it
