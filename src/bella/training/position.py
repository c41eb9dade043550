"""Where in an epoch a run stands, so that it can stop and go on there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bella.inputs import split
from bella.sealed import digest
from bella.training.gradients import Loss
from bella.training.randomness import Apart, Drawn


@dataclass
class Position:
    """A step of an epoch, and what the rest of the epoch depends on beside `bella.training.state`.

    The order of the data follows from the seed and the epoch: who goes on reads the batches before
    once more and passes them over. Random numbers (dropout, augmentation) go on as they were drawn.

    Attributes:
        steps: of the epoch that are done.
        skipped: of them those that were left out, because numbers were not finite.
        total: sum of the losses over the labels that counted in them.
        count: how many labels that were, or the sum of their weights.
        labels: digest of all labels in their order, by which another order of the data is noticed.
        drawn: how far the generators were drawn from; ``None`` before the first step.
        log: the transport's figures of the last step.
        apart: what the passes of each of several processes have drawn, see `Apart`.
    """

    steps: int = 0
    skipped: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: float = 0.0
    labels: str = ""
    drawn: Drawn | None = None
    log: dict[str, float] = field(default_factory=dict)
    apart: list[list[Tensor] | None] = field(default_factory=list)

    def add(self, loss: Loss | None, labels: str, drawn: Drawn | None) -> None:
        """A step is done; ``None`` for the loss of one that was left out."""
        if loss is None:
            self.skipped += 1
        else:
            self.total = self.total.to(loss.mean) + loss.mean.mean() * loss.counted
            self.count += loss.counted
        self.labels, self.drawn = labels, drawn
        self.steps += 1

    @property
    def mean(self) -> float:
        """The loss of the epoch so far."""
        return float(self.total) / (self.count or 1)

    def state(self) -> dict[str, Any]:
        """As tensors and JSON values: a part of a checkpoint."""
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "total": float(self.total),
            "count": self.count,
            "labels": self.labels,
            "drawn": None if self.drawn is None else self.drawn.state(),
            "log": self.log,
            "apart": self.apart,
        }

    @classmethod
    def of(cls, state: dict[str, Any], most: int) -> Position:
        """What `state` made, in an epoch of ``most`` steps.

        Raises:
            ValueError: it is not what that makes.
        """
        steps, count, labels = state["steps"], state["count"], state["labels"]
        skipped = state["skipped"]
        if type(steps) is not int or not 0 < steps <= most:
            raise ValueError(f"step {steps!r} of {most}")
        if type(skipped) is not int or not 0 <= skipped <= steps:
            raise ValueError(f"{skipped!r} skipped steps of {steps}")
        if not isinstance(labels, str) or not 0 <= count < float("inf"):
            raise ValueError("its labels are none")
        for states in state["apart"]:
            if states is not None and not all(isinstance(value, Tensor) for value in states):
                raise ValueError("its processes drew no numbers")
        return cls(
            steps,
            skipped,
            torch.tensor(float(state["total"])),
            float(count),
            labels,
            None if state["drawn"] is None else Drawn.of(state["drawn"]),
            {str(name): float(value) for name, value in state["log"].items()},
            [None if states is None else list(states) for states in state["apart"]],
        )

    def go_on(self, labels: str, device: torch.device, apart: Apart, seed: int) -> None:
        """The batches before are passed over: draw random numbers as the stopped run did.

        Args:
            labels: digest of the labels that were passed over.
            device: where training runs.
            apart: what the passes of each of several processes draw from.
            seed: of the epoch.
        """
        self.check_order(labels)
        if self.drawn is not None:
            self.drawn.go_on(device)
        if apart.size > 1 and len(self.apart) == apart.size:
            apart.states = self.apart[apart.rank]
        elif apart.size > 1:  # another number of processes: draws of their own
            apart.begin(seed + self.steps)

    def check_order(self, labels: str) -> None:
        """Say where the batches that were passed over are not those that were trained on."""
        if labels != self.labels:
            warnings.warn(
                "The training data come in another order than in the run that was stopped (a "
                "sampler that draws from the process's random numbers as it goes?): the rest of "
                "this epoch is not what it would have been.",
                stacklevel=4,
            )


def labels_after(before: str, group: Sequence[Any]) -> str:
    """The digest of labels, with those of a step's batches after them."""
    return digest({before: torch.stack([_of(split(batch)[2]) for batch in group])})


def _of(labels: Tensor) -> Tensor:
    """The digest of one batch as a tensor: batches need not have the same shape."""
    return torch.tensor(list(bytes.fromhex(digest({"labels": labels}))), dtype=torch.uint8)
