"""The least that prediction asks of a posterior: linear particles, chosen by ``subset``."""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn


class LinearParticles(nn.Module):
    """x -> W_i x, plus noise at each call where ``stochastic``; counts its passes."""

    def __init__(self, particles=5, features=4, classes=3, stochastic=False, form="tensor"):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(particles, classes, features, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()  # somebody keeps this one in evaluation mode
        self.particles, self.stochastic, self.form = particles, stochastic, form
        self.running = list(range(particles))
        self.passes: list[int] = []

    @property
    def chosen(self):
        return tuple(self.running)

    @contextmanager
    def subset(self, particles):
        self.running = list(particles)
        try:
            yield
        finally:
            self.running = list(range(self.particles))

    def begun(self, *args, **kwargs):
        return args, kwargs

    def forward(self, x, shift=0.0):
        self.passes.append(len(self.running))
        weight = self.weight[self.running]
        if self.stochastic:
            weight = weight + torch.randn_like(weight)
        logits = torch.einsum("ncf,bf->nbc", weight, self.dropout(x)) + shift
        return {
            "tensor": logits,
            "object": SimpleNamespace(logits=logits),
            "mapping": {"logits": logits},
            "tuple": (logits, x),
            "nothing": None,
        }[self.form]
