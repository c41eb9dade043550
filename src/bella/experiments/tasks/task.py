"""A task: a network to adapt, the parts of a data set, and which of them are shifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bella.data.labelled import Labelled
from bella.data.split import stratified_split
from bella.models import Opened, open_network
from bella.models.language import OpenedLanguage
from bella.prediction.predictive import Predictive

Place = tuple[str, list[int]]
"""A pool of examples and positions in it."""


@dataclass(frozen=True)
class Gallery:
    """A picture of a part's most and least certain images.

    Attributes:
        title: of the picture.
        part: name of the part.
        labels: what is known of each of its images, in words.
    """

    title: str
    part: str
    labels: Callable[[Any], list[str]]


@dataclass(frozen=True)
class Words:
    """How a report speaks of a task.

    Attributes:
        examples: what its images show, in the plural.
        noticing: for a shifted part by the name of its figures, what it is to notice it;
            "noticing the shift" of a part ``shift`` where nothing is said.
        unscored: shifted parts whose labels are themselves in doubt: what is right there is not
            counted.
        galleries: pictures beside that of the test images.
        groups: from the predictives of all parts to those that the picture of uncertainties
            compares; where it is missing right answers, wrong ones, and the shifted parts.
    """

    examples: str = "images"
    noticing: Mapping[str, str] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    groups: Callable[[Task, Mapping[str, Predictive]], dict[str, Predictive]] | None = None


@dataclass(frozen=True)
class Task:
    """What methods are compared on.

    Attributes:
        name: for file names.
        title: for people.
        open: a fresh network for a seed.
        pools: examples by name; what the shared prefix makes of them is computed once.
        split: for a seed, where ``train``, ``validation``, ``test`` and the shifted parts are.
        shifts: the shifted parts, by the name that their figures carry; each is told from ``test``.
        settings: of `bella.fit`, for every method alike; chosen on validation data.
        build: of `bella.low_rank`, for every method alike, in place of the recipe's.
        rank: of the low-rank changes.
        pretrained: whether the network is; otherwise all methods train it from scratch.
        words: how a report speaks of it.
        source: arguments that open it again, of one that has no name in `TASKS`.
    """

    name: str
    title: str
    open: Callable[[int], Opened | OpenedLanguage]
    pools: Mapping[str, Labelled]
    split: Callable[[int], dict[str, Place]]
    shifts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 4
    pretrained: bool = True
    words: Words = field(default_factory=Words)
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return next(iter(self.pools.values())).classes

    def part(self, name: str, seed: int) -> Labelled:
        """The examples of one part."""
        pool, positions = self.split(seed)[name]
        return self.pools[pool].select(positions)

    def settings_with(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The task's settings with what a user asks for in their place.

        Of other epochs the divergence warms up over the same share.
        """
        chosen = dict(self.settings) | dict(asked)
        if "kl_warmup" in self.settings and "epochs" in asked and "kl_warmup" not in asked:
            share = self.settings["kl_warmup"] / self.settings["epochs"]
            chosen["kl_warmup"] = int(share * asked["epochs"])
        return chosen


def whole(pool: str, images: Labelled) -> Place:
    """All examples of a pool."""
    return pool, list(range(len(images)))


def fixed(parts: Mapping[str, Labelled]) -> Callable[[int], dict[str, Place]]:
    """The same parts for every seed, each a pool of its own."""
    return lambda seed: {name: whole(name, images) for name, images in parts.items()}


def draw(
    pool: str, labels: Sequence[int], counts: Mapping[str, int], seed: int
) -> dict[str, Place]:
    """Parts of so many examples, drawn by class from a pool, anew for each seed.

    From a pool that is large beside them seeds draw nearly all distinct examples, so that their
    spread is that of other training data too.

    Args:
        pool: its name.
        labels: of its examples.
        counts: of each part; a smaller pool is divided in these proportions.
        seed: of the draw.
    """
    rest = len(labels) - sum(counts.values())
    wanted = {**counts, "": rest} if rest > 0 else dict(counts)
    shares = {name: count / sum(wanted.values()) for name, count in wanted.items()}
    drawn = stratified_split(labels, shares, seed)
    return {name: (pool, drawn[name]) for name in counts}


def opener(network: str, classes: int, image_size: int | None) -> Callable[[int], Opened]:
    """A fresh network by name, for each seed."""

    def open_it(seed: int) -> Opened:
        return open_network(network, classes, image_size=image_size, seed=seed)

    return open_it
