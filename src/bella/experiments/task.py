"""A task: a network to adapt, the parts of a data set, and which of them are shifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages
from bella.data.split import stratified_split
from bella.errors import BellaError, nearest
from bella.models import Opened, open_network

Place = tuple[str, list[int]]
"""A pool of images and positions in it."""


@dataclass(frozen=True)
class Task:
    """What methods are compared on.

    Attributes:
        name: for file names.
        title: for people.
        open: a fresh network for a seed.
        pools: images by name; what the shared prefix makes of them is computed once.
        split: for a seed, where ``train``, ``validation``, ``test`` and the shifted parts are.
        shifts: the shifted parts, by the name that their figures carry; each is told from ``test``.
        settings: of `bella.fit`, for every method alike; chosen on validation data.
        build: of `bella.low_rank`, for every method alike; chosen on validation data as well.
        rank: of the low-rank changes.
    """

    name: str
    title: str
    open: Callable[[int], Opened]
    pools: Mapping[str, LabelledImages]
    split: Callable[[int], dict[str, Place]]
    shifts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 4

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return next(iter(self.pools.values())).classes

    def part(self, name: str, seed: int) -> LabelledImages:
        """The images of one part."""
        pool, positions = self.split(seed)[name]
        return self.pools[pool].select(positions)


def whole(pool: str, images: LabelledImages) -> Place:
    """All images of a pool."""
    return pool, list(range(len(images)))


def fixed(parts: Mapping[str, LabelledImages]) -> Callable[[int], dict[str, Place]]:
    """The same parts for every seed, each a pool of its own."""
    return lambda seed: {name: whole(name, images) for name, images in parts.items()}


def elpv_task(shift_limit: int = 400) -> Task:
    """Solar cells: train on mono cells that the experts agreed on; doubt and poly are shifts.

    Each seed splits the mono cells anew, so that the spread over seeds is that of the data too.

    Args:
        shift_limit: polycrystalline cells to test on, a stratified choice of the 1,322.
    """
    from bella.data import elpv

    open_lite = _opener("efficientnet-lite0", 2, 160)
    parts: dict[str, Any] = dict(elpv(open_lite(0).preprocess))
    share = shift_limit / len(parts["poly"])
    if share < 1:
        parts["poly"] = parts["poly"].split({"in": share, "out": 1 - share}, 0)["in"]
    mono = parts["train"].join([parts["validation"], parts["test"]])
    pools = {"mono": mono, "doubt": parts["doubt"], "poly": parts["poly"]}

    def split(seed: int) -> dict[str, Place]:
        fractions = {"train": 0.65, "validation": 0.15, "test": 0.2}
        clean = stratified_split(mono.labels, fractions, seed)
        shifted = {name: whole(name, pools[name]) for name in ("doubt", "poly")}
        return {name: ("mono", positions) for name, positions in clean.items()} | shifted

    return Task(
        "elpv",
        "ELPV solar cells, EfficientNet-Lite0",
        open_lite,
        pools,
        split,
        {"doubt": "doubt", "shift": "poly"},
        {"epochs": 3, "learning_rate": 1e-3},
        {"gain": 5.0},
    )


def fashion_task() -> Task:
    """Fashion-MNIST, 1,000 training images; noise is the shift."""
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
        fixed(parts),
        {"shift": "corrupted"},
        {"epochs": 3, "learning_rate": 1e-3},
        {"gain": 5.0},
    )


def folder_task(path: str | Path, network: str, *, image_size: int | None = None) -> Task:
    """Anybody's folder or CSV of images (see `bella.data.folder`)."""
    from bella.data import splits

    classes = len(splits(path, Preprocess(32))["train"].classes)
    opener = _opener(network, classes, image_size)
    parts = splits(path, opener(0).preprocess)
    return Task(Path(path).stem, str(path), opener, parts, fixed(parts))


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
