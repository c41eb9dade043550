"""Networks that are trained from scratch: what rank-1 and SSVI are measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bella.data.images import Preprocess
from bella.data.sets.base import at_most
from bella.experiments.tasks.task import Task, fixed
from bella.models import Defaults, Opened
from bella.models.opened import seeded
from bella.models.resnet import small_resnet


def from_scratch(
    name: str, title: str, network: Callable[[], nn.Module], train: int, **settings: Any
) -> Task:
    """Fashion-MNIST of so many training images, for a network that starts anew."""
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
    return from_scratch(
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
    return from_scratch(
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
