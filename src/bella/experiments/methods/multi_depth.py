"""Particles whose heads also read a frozen block: the control of every pool with anchors.

Part of what a mixture wins is what its classifiers read. Here the particles' own heads read it:
beside the features, what enters the first adapted block, pooled as suits validation. It is held in
the same pass, so nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.experiments.methods.low_rank import LowRank
from bella.experiments.methods.trained import moved
from bella.posterior import Posterior
from bella.prediction.activations import Reading, first_block, mask_of, pooled
from bella.recipes import Plan, linear_head, make
from bella.training.anchors import fit_anchor, scale_of, varies
from bella.training.probe import head_inputs, probes_for
from bella.trees import tensors_of

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


class ReadsBoth(nn.Module):
    """A linear head of the features and of what a block was given.

    Args:
        features: size of what arrives at the head.
        size: of what the block is given, pooled.
        classes: how many.
        pooling: see `Reading`.
        scale: of what the block is given.
    """

    def __init__(self, features: int, size: int, classes: int, pooling: str, scale: float):
        super().__init__()
        self.linear = nn.Linear(features + size, classes)
        self.pooling = pooling
        self.scale = scale
        self.held: Tensor | None = None
        self.mask: Tensor | None = None

    def hear(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the network runs: keep which of its tokens are none."""
        self.mask = mask_of(module, args, kwargs)

    def hold(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the block runs: keep what it is given."""
        x = tensors_of((args, kwargs))[0]
        # A block that is itself the first particle layer is given one row for all particles.
        mask = None if self.mask is None else self.mask[: len(x)]
        self.held = self.scale * pooled(x, self.pooling, mask)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, features) to (rows, classes)."""
        assert self.held is not None
        held = self.held.repeat(len(x) // len(self.held), 1)
        return self.linear(torch.cat([x.flatten(1), held], 1))


@dataclass(frozen=True, kw_only=True)
class MultiDepth(LowRank):
    """`bella.low_rank` with heads that start as probes of both."""

    @property
    def reads(self) -> bool:
        """Its heads do, at one place."""
        return True

    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """Particles of the task's rank.

        Raises:
            BellaError: the network's head is not one Linear, or what enters its first adapted block
                cannot be read.
        """
        opened = bench.open(seed)
        name = linear_head(opened.network, opened.defaults.modules_to_save)
        if name is None:
            raise BellaError(
                "multi-depth heads are for networks whose head is one Linear: leave the row out."
            )
        entrance = first_block(bench.reader[0].posterior)
        old: Any = opened.network.get_submodule(name)
        pooling, scale, size = best_reading(bench, seed, entrance)

        def made(plan: Plan) -> Posterior:
            network = bench.open(seed).network
            head = ReadsBoth(old.in_features, size, old.out_features, pooling, scale)
            head.to(bench.device)
            network.set_submodule(name, head)
            posterior = make("low-rank", network, plan)
            network.register_forward_pre_hook(head.hear, with_kwargs=True)
            block = network.get_submodule(entrance)
            block.register_forward_pre_hook(head.hold, with_kwargs=True)
            return posterior

        plan = self.plan(bench, seed, opened)
        plan = replace(plan, heads=(f"{name}.linear",), head=f"{name}.linear", probes=())
        frozen = made(replace(plan, particles=1))
        features = [
            head_inputs(frozen, bench.loader(*bench.task.split(seed)[part]))
            for part in ("train", "validation")
        ]
        probes = probes_for(features[0], features[1], self.particles, seed)
        return made(replace(plan, probes=probes))


def best_reading(bench: Bench, seed: int, entrance: str) -> tuple[str, float, int]:
    """The pooling of what enters a block that validation likes best, its scale beside that of the
    features at the head, and its size."""
    train = bench.activations("train", seed)
    validation = bench.activations("validation", seed)
    here = {r: x for r, x in train.features.items() if r.place == entrance}
    readings = [reading for reading, x in here.items() if varies(x)]
    if not readings:
        raise BellaError(f"What enters {entrance} cannot be read: leave out multi-depth heads.")
    classes = len(bench.task.classes)

    def loss(reading: Reading) -> float:
        return fit_anchor([reading], train, validation, classes).nll

    best = min(readings, key=loss)
    x, held = bench.features("train", seed)[0], train.features[best]
    return best.pooling, scale_of(x) / scale_of(held), held.shape[1]


ROWS = (
    MultiDepth(
        name="multi-depth",
        title="multi-depth heads",
        particles=5,
        settings=moved("ensemble"),
    ),
)
