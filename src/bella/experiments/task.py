"""A task: a network to adapt, the parts of a data set, and which of them are shifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bella.data.images import Preprocess
from bella.data.labelled import LabelledImages
from bella.data.split import stratified_split
from bella.errors import BellaError, nearest
from bella.models import Defaults, Opened, open_network
from bella.models.opened import seeded
from bella.models.resnet import small_resnet

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


def elpv_task(shift_limit: int = 400) -> Task:
    """Solar cells: train on mono cells that the experts agreed on; doubt and poly are shifts.

    Each seed splits the mono cells anew, so that the spread over seeds is that of the data too.

    Args:
        shift_limit: polycrystalline cells to test on, a stratified choice of the 1,322.
    """
    from bella.data import elpv

    open_lite = _opener("efficientnet-lite0", 2, 160)
    parts: dict[str, Any] = dict(elpv(open_lite(0).preprocess))
    parts["poly"] = at_most(shift_limit, parts["poly"])
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
        {"gain": 10.0},
        frozen_heads=True,
    )


def fashion_task() -> Task:
    """Fashion-MNIST, 1,000 training images; noise is the shift."""
    from bella.data import fashion_mnist

    open_lite = _opener("efficientnet-lite0", 10, 96)
    parts: dict[str, Any] = dict(fashion_mnist(open_lite(0).preprocess, limit=1000))
    for name, count in (("validation", 500), ("test", 1000), ("corrupted", 1000)):
        parts[name] = at_most(count, parts[name])
    return Task(
        "fashion-mnist",
        "Fashion-MNIST (1,000 training images), EfficientNet-Lite0",
        open_lite,
        parts,
        fixed(parts),
        {"shift": "corrupted"},
        {"epochs": 3, "learning_rate": 1e-3},
        {"gain": 10.0},
    )


def _from_scratch(
    name: str, title: str, network: Callable[[], nn.Module], train: int, **settings: Any
) -> Task:
    from bella.data import fashion_mnist

    preprocess = Preprocess(28, mean=72.9, std=90.0)
    parts: dict[str, Any] = dict(fashion_mnist(preprocess, limit=train))
    for part, count in (("validation", 1000), ("test", 4000), ("corrupted", 1000)):
        parts[part] = at_most(count, parts[part])

    def open_it(seed: int) -> Opened:
        with seeded(seed):
            return Opened(network(), preprocess, Defaults((), ()))

    return Task(
        name,
        f"Fashion-MNIST ({train:,} training images), {title} from scratch",
        open_it,
        parts,
        fixed(parts),
        {"shift": "corrupted"},
        {"keep": "last"} | settings,
        pretrained=False,
    )


def fashion_resnet_task() -> Task:
    """Fashion-MNIST, a small ResNet from scratch: what SSVI is measured on without a GPU."""
    return _from_scratch(
        "fashion-resnet",
        "small ResNet",
        lambda: small_resnet(channels=3),
        10_000,
        epochs=6,
        kl_warmup=3,
        batch_size=32,  # a sparse set needs steps to find its place
        learning_rate=1e-2,
    )


def fashion_mlp_task() -> Task:
    """Fashion-MNIST, two wide hidden layers from scratch: what rank-1 is measured on."""
    return _from_scratch(
        "fashion-mlp",
        "784-1500-1500-10 network",
        wide_network,
        2_000,
        epochs=20,
        kl_warmup=10,
        batch_size=128,
        learning_rate=1e-3,
    )


def wide_network() -> nn.Module:
    """Grey images (batch, 3, 28, 28) of equal channels to 10 logits: 3.4 million parameters."""
    return nn.Sequential(
        nn.AvgPool3d((3, 1, 1)),
        nn.Flatten(),
        nn.Linear(784, 1500),
        nn.ReLU(),
        nn.Linear(1500, 1500),
        nn.ReLU(),
        nn.Linear(1500, 10),
    )


def folder_task(path: str | Path, network: str, *, image_size: int | None = None) -> Task:
    """Anybody's folder or CSV of images (see `bella.data.folder`)."""
    from bella.data import splits

    classes = len(splits(path, Preprocess(32))["train"].classes)
    opener = _opener(network, classes, image_size)
    parts = splits(path, opener(0).preprocess)
    return Task(Path(path).stem, str(path), opener, parts, fixed(parts))


TASKS: dict[str, Callable[[], Task]] = {
    "elpv": elpv_task,
    "fashion-mnist": fashion_task,
    "fashion-resnet": fashion_resnet_task,
    "fashion-mlp": fashion_mlp_task,
}


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
