"""What was found before a training on texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bella.data.records import Records
from bella.posterior import Posterior
from bella.runs.found import Begun, parameters_by_kind
from bella.runs.texts.config import TextConfig


@dataclass(frozen=True)
class FoundTexts(Begun):
    """What a training begins with.

    Attributes:
        task: its name.
        network: its name.
        rows: how many of each part.
        columns: by what they are for.
        facts: what the training rows say once and for all.
        parameters: how many of each kind, over all particles.
        particles: how many.
        steps_per_epoch: steps of the optimiser in an epoch.
        epochs: how many.
        device: where it runs.
    """

    task: str
    network: str
    rows: Mapping[str, int]
    columns: Mapping[str, str]
    facts: Mapping[str, Any]
    parameters: Mapping[str, int]
    particles: int
    steps_per_epoch: int
    epochs: int
    device: str

    @classmethod
    def of(
        cls,
        config: TextConfig,
        posterior: Posterior,
        rows: Mapping[str, Records],
        columns: Mapping[str, str],
        facts: Mapping[str, Any],
        batches: int,
    ) -> FoundTexts:
        """Count; no random number is used up."""
        return cls(
            config.task,
            config.network,
            {part: len(some) for part, some in rows.items()},
            columns,
            facts,
            parameters_by_kind(posterior),
            posterior.particles,
            -(-batches // config.accumulate),
            config.epochs,
            str(next(posterior.network.parameters()).device),
        )

    def lines(self) -> list[str]:
        """All of it for a terminal, one thing a line."""
        counts = ", ".join(f"{count:,} {part}" for part, count in self.rows.items())
        read = ", ".join(f"{role} from {column!r}" for role, column in self.columns.items())
        said = [f"rows: {counts}; {read}"]
        if classes := self.facts.get("classes"):
            shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
            said.append(f"classes: {shown}")
        elif "mean" in self.facts:
            said.append(
                f"numbers: mean {self.facts['mean']:.4g}, standard deviation "
                f"{self.facts['std']:.4g}; learnt scaled to 0 and 1"
            )
        return [
            *said,
            f"{self.network} for {self.task}; {self.of_parameters()}",
            self.of_steps(),
        ]

    def warnings(self) -> list[str]:
        """What a person should know before he waits, in sentences."""
        return self.few_steps(f"{self.rows['train']} training rows")
