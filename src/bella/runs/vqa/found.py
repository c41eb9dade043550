"""What was found before a training on questions about pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bella.posterior import Posterior
from bella.runs.found import Begun, parameters_by_kind
from bella.runs.vqa.config import VqaConfig


@dataclass(frozen=True)
class FoundQuestions(Begun):
    """What a training begins with.

    Attributes:
        network: its name.
        questions: how many of each part.
        pictures: how many the training questions are about.
        parameters: how many of each kind, over all particles.
        particles: how many.
        projector: whether the projector is the run's own: trained before, or read.
        steps_per_epoch: steps of the optimiser in an epoch.
        epochs: how many.
        device: where it runs.
    """

    network: str
    questions: Mapping[str, int]
    pictures: int
    parameters: Mapping[str, int]
    particles: int
    projector: bool
    steps_per_epoch: int
    epochs: int
    device: str

    @classmethod
    def of(
        cls,
        config: VqaConfig,
        posterior: Posterior,
        questions: Mapping[str, Sequence[Any]],
        batches: int,
        projector: bool,
    ) -> FoundQuestions:
        """Count; no random number is used up."""
        return cls(
            config.network,
            {part: len(some) for part, some in questions.items()},
            len({one.image for one in questions["train"]}),
            parameters_by_kind(posterior),
            posterior.particles,
            projector,
            -(-batches // config.accumulate),
            config.epochs,
            str(next(posterior.network.parameters()).device),
        )

    def lines(self) -> list[str]:
        """All of it for a terminal, one thing a line."""
        counts = ", ".join(f"{count:,} {part}" for part, count in self.questions.items())
        own = "the run's own projector" if self.projector else "the network's projector"
        return [
            f"questions: {counts}; those to train on are about {self.pictures:,} pictures",
            f"{self.network} with {own}; {self.of_parameters()}",
            self.of_steps(),
        ]

    def warnings(self) -> list[str]:
        """What a person should know before he waits, in sentences."""
        return self.few_steps(f"{self.questions['train']} training questions")
