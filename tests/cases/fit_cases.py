"""A small problem and network to train on."""

from __future__ import annotations

import torch
from torch import nn

import bella
from bella.sealed import read_sealed
from bella.training.checkpoint import CHECKPOINT, _unpacked


def problem(count=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    return x, y


class Blocks(nn.Module):
    """Two frozen blocks, an adapted one, a head; ``rate`` is the first block's dropout."""

    def __init__(self, rate=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(rate)) for _ in range(3)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make(particles=3, network=None, **options):
    options = {"b_std": 0.1, "seed": 0} | options
    return bella.low_rank(
        network or Blocks(), particles, 2, (r"blocks\.2\.0",), modules_to_save=("head",), **options
    )


def fit(posterior, data=None, **options):
    options = {"epochs": 3, "batch_size": 8, "learning_rate": 0.02, "progress": False} | options
    return bella.fit(posterior, problem() if data is None else data, **options)


def values(posterior):
    return {k: v.detach().clone() for k, v in posterior.stacked_parameters().items()}


def assert_same(one, two, **close):
    for name, value in values(one).items():
        if close:
            torch.testing.assert_close(value, values(two)[name], **close)
        else:
            assert torch.equal(value, values(two)[name]), name


def state_of(folder):
    """What a checkpoint holds, whatever run it is of; made to be changed and written again."""
    record, tensors = read_sealed(folder / CHECKPOINT)
    return _unpacked(record["state"], {name: value.clone() for name, value in tensors.items()})
