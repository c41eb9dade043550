"""What every row of a comparison answers: which logits, on which data, at what cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bella.prediction.predictive import Predictive

if TYPE_CHECKING:
    from bella.experiments.bench import Bench

Outputs = Mapping[str, tuple[Predictive, Tensor]]
"""For each part of the data: the predictive (members, count, classes) and the labels."""

Costs = dict[str, float]
"""``trainable`` parameters, ``bytes_on_disk``, ``seconds_training``, ``mb_training`` (the peak)
and ``ms_predicting`` of an image; NaN where there is no such figure."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One row of the table.

    Attributes:
        name: the word a user types.
        title: the row's heading.
    """

    name: str
    title: str

    @property
    def from_scratch(self) -> bool:
        """Whether it can train a network that is not pre-trained."""
        return False

    @property
    def reads(self) -> bool:
        """Whether it reads frozen activations."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """Methods whose runs this one starts from."""
        return ()

    @abstractmethod
    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Train, or derive, and predict all parts of the data but the training part.

        Args:
            bench: the task, its data and network, and the folder of all runs.
            seed: decides the split, the starts, the order of the data and the noise.
            place: folder of this run.
        """

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """What decides a run, beside task and seed: if a folder holds it, it is not run again."""
        return {"kind": type(self).__name__} | asdict(self)


@dataclass(frozen=True, kw_only=True)
class Derived(Method):
    """A row made of another row's run.

    Attributes:
        of: the other method's name.
    """

    of: str

    @property
    def from_scratch(self) -> bool:
        """Whether it can train a network that is not pre-trained."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """The other method."""
        return (self.of,)

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """Its own, and the other run's."""
        return super().key(bench, seed) | {"from": bench.figures_of(self.of, seed)["key"]}
