"""A task on which a table or figure of the paper is made in a second."""

import numpy as np
import torch
from torch import nn

from bella.data import ArrayImages, Preprocess
from bella.experiments.paper.item import Setup, rows_named
from bella.experiments.tasks.task import Task, fixed
from bella.models import Defaults, Opened

CLASSES = ("dark", "light")
PREPROCESS = Preprocess(8, mean=127.0, std=64.0)


def images(count, seed, shift=0):
    """Grey squares with noise; a light one is lighter."""
    generator = np.random.default_rng(seed)
    labels = [i % 2 for i in range(count)]
    middle = np.array([90 + 60 * label + shift for label in labels])[:, None, None, None]
    pixels = middle + generator.normal(0, 60, (count, 8, 8, 1))
    pixels = np.repeat(np.clip(pixels, 0, 255), 3, 3).astype(np.uint8)
    return ArrayImages(list(pixels), labels, CLASSES, PREPROCESS)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.fc2(torch.tanh(self.fc1(x)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(192, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = self.embed(x.flatten(1))
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def small_task(name="squares"):
    """Four blocks of two layers on 64 pixels; ``far`` is darker."""

    def open_it(seed):
        torch.manual_seed(0)
        return Opened(Network().eval(), PREPROCESS, Defaults(("fc1", "fc2"), ("head",)))

    parts = {
        "train": images(40, 0),
        "validation": images(24, 1),
        "test": images(30, 2),
        "far": images(20, 3, shift=-60),
    }
    settings = {"epochs": 1, "learning_rate": 0.02, "batch_size": 8}
    return Task(
        name, name.title(), open_it, parts, fixed(parts), {"shift": "far"}, settings, rank=2
    )


def small_setup(folder, methods, seeds=1, **options):
    """What an item is made with."""
    return Setup(
        tasks=[small_task()], methods=rows_named(methods), folder=folder, seeds=seeds, **options
    )
