"""A task: a network to adapt, the parts of a data set, and which of them are shifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bella.data.labelled import LabelledImages
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
        frozen_heads: whether the heads of low-rank particles stay the probes that they start as:
            each has seen a resample of its own, and training on the same data brings them together.
        pretrained: whether the network is; otherwise all methods train it from scratch.
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
    frozen_heads: bool = False
    pretrained: bool = True

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


def at_most(count: int, images: LabelledImages) -> LabelledImages:
    """A stratified choice of so many images, the same each time; all if there are fewer."""
    share = count / len(images)
    return images if share >= 1 else images.split({"in": share, "out": 1 - share}, 0)["in"]


def opener(network: str, classes: int, image_size: int | None) -> Callable[[int], Opened]:
    """A fresh network by name, for each seed."""

    def open_it(seed: int) -> Opened:
        return open_network(network, classes, image_size=image_size, seed=seed)

    return open_it
