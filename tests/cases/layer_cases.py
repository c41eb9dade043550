"""Every kind of layer that carries particles, in small networks, and dense formulas for them.

Nothing here uses the code under test for its mathematics: kernels are written out again, gradients
come from autograd over plain networks, and changes are formed as whole matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from helpers import off_diagonal_median, pairwise
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import bella


def grads_of(posterior: bella.Posterior) -> dict[str, Tensor]:
    """A copy of the gradients as they are."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in posterior.stacked_parameters().items()
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Two dictionaries of tensors agree."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


# ---------------------------------------------------------------- small networks


class Residual(nn.Module):
    """x + W2 tanh(W1 x)."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Blocks(nn.Module):
    """A stem, three residual blocks, and a head on the mean of the positions if there are any."""

    def __init__(self, width: int = 4, classes: int = 3):
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1, -2).mean(1) if x.dim() > 2 else x)


class Twice(nn.Module):
    """Calls one layer twice."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Convolutions(nn.Module):
    """Two convolutions, an average over pixels, a head."""

    def __init__(self, **options: Any):
        super().__init__()
        self.first = nn.Conv2d(2, 4, **options)
        self.second = nn.Conv2d(4, 5, **options)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(x)))
        return self.head(torch.tanh(x).mean((2, 3)))


class Sequences(nn.Module):
    """Two convolutions over time, an average, a head."""

    def __init__(self, **options: Any):
        super().__init__()
        self.first = nn.Conv1d(2, 4, **options)
        self.second = nn.Conv1d(4, 5, **options)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(x)))
        return self.head(torch.tanh(x).mean(2))


class Words(nn.Module):
    """A table of rows, of which number 0 is padding, two layers on them, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=0)
        self.inner = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.embed(numbers)))).mean(1))


@dataclass(frozen=True)
class Case:
    """A network, inputs for it, and what of it is adapted."""

    network: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    targets: tuple[str, ...]
    heads: tuple[str, ...] = ()

    def posterior(self, particles: int = 4, **options: Any) -> bella.Posterior:
        """Particles at distinct starts."""
        options = {"rank": 2, "alpha": 3, "b_std": 0.5, "head_init": "reset"} | options
        return bella.low_rank(
            self.network(),
            particles,
            target_modules=self.targets,
            modules_to_save=self.heads,
            **options,
        )


def features() -> Tensor:
    return torch.randn(6, 4)


def images() -> Tensor:
    return torch.randn(6, 2, 6, 6)


def words() -> Tensor:
    return torch.randint(9, (6, 5))


CASES = {
    "linear, shared input": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), features, ("0", "2")
    ),
    "Conv1D": Case(
        lambda: nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6)), features, ("0", "2")
    ),
    "positions": Case(Blocks, lambda: torch.randn(6, 5, 4), ("up", "down"), ("head",)),
    "later block": Case(Blocks, features, ("blocks.1.up", "blocks.2.down"), ("head",)),
    "called twice": Case(Twice, features, ("layer",)),
    "pointwise convolution": Case(
        lambda: Convolutions(kernel_size=1), images, ("first", "second"), ("head",)
    ),
    "3x3 convolution": Case(
        lambda: Convolutions(kernel_size=3, stride=2, padding=1),
        images,
        ("first", "second"),
        ("head",),
    ),
    "convolution over time": Case(
        lambda: Sequences(kernel_size=3, stride=2, padding=2, dilation=2),
        lambda: torch.randn(6, 2, 9),
        ("first", "second"),
        ("head",),
    ),
    "embedding": Case(Words, words, ("embed", "inner"), ("head",)),
}
"""Every kind of layer that carries low-rank particles, and the ways an input reaches it."""


# ---------------------------------------------------------------- dense formulas


def changes(posterior: bella.Posterior) -> dict[str, Tensor]:
    """Δ_i = s B_i A_i of every adapted layer as (particles, out, in), formed."""
    return {
        name: layer.scale * torch.einsum("nor,nri->noi", layer.B, layer.A).detach()
        for name, layer in posterior.layers().items()
        if hasattr(layer, "A")
    }


def weight_gradients(posterior: bella.Posterior, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Every particle's loss gradient by the weights of its plain network, stacked.

    By the names of adapted layers (weights only, as (out, in)) and of copied parameters.
    """
    adapted = changes(posterior)
    copied = [site.name for site in posterior.sites() if site.name not in adapted]
    found: dict[str, list[Tensor]] = {name: [] for name in [*adapted, *copied]}
    for particle in range(posterior.particles):
        plain = posterior.particle(particle).requires_grad_(True)
        F.cross_entropy(plain(x), y).backward()
        for name in adapted:
            module = plain.get_submodule(name)
            grad = module.weight.grad
            turned = isinstance(module, Conv1D | nn.Embedding)
            found[name].append(grad.mT if turned else grad.flatten(1))
        for name in copied:
            found[name].append(plain.get_parameter(name).grad)
    return {name: torch.stack(parts) for name, parts in found.items()}


def written_kernel(name: str, d2: Tensor, h: Tensor | float) -> Tensor:
    """k of a square distance, as the formulas stand in the papers."""
    if name == "rbf":
        return (-d2 / (2 * h)).exp()
    if name == "imq":
        return (1 + d2 / (2 * h)) ** -0.5
    return (-(d2 / h).sqrt()).exp()


def kernel_rows(
    points: list[Tensor], kernel: str, scope: str, normalize: bool
) -> Callable[[int, list[Tensor]], Tensor]:
    """(i, here) -> k(here, point_j) for all j, one row for each kernel, differentiable in ``here``.

    ``points`` are the layers, each (particles, ...); ``here`` stands for particle i's point in
    each. k(i, i) is 1.
    """
    flat = [p.flatten(1) for p in points]
    pairs = [pairwise(p) for p in flat]
    if scope == "global":
        share = [1 / off_diagonal_median(d) if normalize else torch.ones(()) for d in pairs]
        share = [s / len(points) for s in share]
        widths = [off_diagonal_median(sum(s * d for s, d in zip(share, pairs, strict=True)))]
    else:
        widths = [off_diagonal_median(d) for d in pairs]

    def rows(i: int, here: list[Tensor]) -> Tensor:
        own = [(h.flatten() - p).square().sum(-1) for h, p in zip(here, flat, strict=True)]
        if scope == "global":
            own = [sum(s * d for s, d in zip(share, own, strict=True))]
        others = torch.arange(len(flat[0])) != i
        return torch.stack(
            [
                torch.where(
                    others,
                    written_kernel(kernel, torch.where(others, d, 1.0), width),
                    1.0,
                )
                for d, width in zip(own, widths, strict=True)
            ]
        )

    return rows


def pulled_back(posterior: bella.Posterior, forces: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forces on W_i as the chain rule hands them to the parameters of the particles."""
    found = {}
    for name, force in forces.items():
        layer = posterior.layers().get(name)
        if layer is None:
            owner, _, leaf = name.rpartition(".")
            found[f"{owner}.values.{leaf}"] = force
        else:
            found[f"{name}.A"] = layer.scale * layer.B.detach().mT @ force
            found[f"{name}.B"] = layer.scale * force @ layer.A.detach().mT
    return found
