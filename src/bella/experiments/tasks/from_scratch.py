"""Networks that are trained from scratch: what rank-1 and SSVI are measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bella.data.images import Augment, Preprocess
from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Task, fixed
from bella.models import Defaults, Opened
from bella.models.opened import seeded
from bella.models.resnet import resnet18, small_resnet
from bella.models.wide_resnet import WideResNet

CIFAR_MEAN, CIFAR_STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
"""Of the training images' channels, in pixel units."""


def from_scratch(
    name: str,
    title: str,
    network: Callable[[], nn.Module],
    parts: Mapping[str, Any],
    preprocess: Preprocess,
    **settings: Any,
) -> Task:
    """A network that starts anew, on images whose part ``corrupted`` is the shift.

    Args:
        name: what a user types.
        title: of the table.
        network: makes the network, from torch's generator.
        parts: images by part.
        preprocess: of whoever reads pictures by the task.
        **settings: of `bella.fit`.
    """

    def open_it(seed: int) -> Opened:
        with seeded(seed):
            return Opened(network(), preprocess, Defaults((), ()))

    return Task(
        name,
        title,
        open_it,
        dict(parts),
        fixed(parts),
        {"shift": "corrupted"},
        {"keep": "last"} | settings,
        pretrained=False,
    )


def on_fashion(
    name: str, title: str, network: Callable[[], nn.Module], train: int, **settings: Any
) -> Task:
    """Fashion-MNIST of so many training images."""
    from bella.data import fashion_mnist

    preprocess = Preprocess(28, mean=72.9, std=90.0)
    parts: dict[str, Any] = dict(fashion_mnist(preprocess, limit=train))
    for part, count in (("validation", 1000), ("test", 4000), ("corrupted", 1000)):
        parts[part] = at_most(count, parts[part])
    title = f"Fashion-MNIST ({train:,} training images), {title} from scratch"
    return from_scratch(name, title, network, parts, preprocess, **settings)


def on_cifar(
    name: str,
    title: str,
    network: Callable[[], nn.Module],
    folder: str | Path | None,
    **settings: Any,
) -> Task:
    """All of CIFAR-10 with crops and flips, a tenth of the training images held out; the shift is
    1,000 test images in fog, which is laid over them at 96 pixels."""
    from bella.data import open_data
    from bella.data.corruptions import SMALLEST, corrupted

    preprocess = Preprocess(
        32, CIFAR_MEAN, CIFAR_STD, augment=Augment(scale=(0.7, 1.0), ratio=(0.9, 1.1))
    )
    parts: dict[str, Any] = dict(open_data("cifar10", preprocess, folder=folder))
    parts["corrupted"] = corrupted(at_most(1_000, parts["test"]), "fog", 3, side=SMALLEST)
    settings = {"epochs": 30, "kl_warmup": 15, "batch_size": 128} | settings
    title = f"CIFAR-10, {title} from scratch"
    return from_scratch(name, title, network, parts, preprocess.plain(), **settings)


def cifar10_resnet18_task(folder: str | Path | None = None) -> Task:
    """CIFAR-10, ResNet-18 from scratch: what SSVI was published on. It wants a GPU.

    Args:
        folder: where CIFAR-10 lies, in any of its forms.
    """
    return on_cifar("cifar10-resnet18", "ResNet-18", resnet18, folder, learning_rate=1e-2)


def cifar10_wrn_task(folder: str | Path | None = None) -> Task:
    """CIFAR-10, WRN-28-10 from scratch: what rank-1 was published on. It wants a GPU.

    Args:
        folder: where CIFAR-10 lies, in any of its forms.
    """
    return on_cifar("cifar10-wrn", "WRN-28-10", WideResNet, folder, learning_rate=1e-3)


def fashion_resnet_task() -> Task:
    """Fashion-MNIST, a small ResNet from scratch: what SSVI is measured on without a GPU."""
    return on_fashion(
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
    return on_fashion(
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
