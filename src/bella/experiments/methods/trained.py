"""Methods that train a posterior; each kind of posterior says how it is made."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bella.evaluation.cost import PeakMemory, cost
from bella.evaluation.similarity import weight_similarity
from bella.experiments.methods.base import Costs, Method, Outputs
from bella.posterior import Posterior
from bella.training.checkpoint import CHECKPOINT
from bella.training.fit import fit
from bella.training.settings import Settings, checked

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


def moved(transport: str, **options: Any) -> dict[str, Any]:
    """The settings of `bella.fit` for a transport."""
    return {"transport": transport, "transport_options": options}


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """A posterior that `bella.fit` trains.

    Attributes:
        particles: how many.
        settings: of `bella.fit`, over the task's.
        fine_tuning: further ones, where the network is pre-trained.
        build: arguments of the constructor.
        draws: of a stochastic posterior, for each prediction.
        reads_images: whether it trains what the other methods share, so that it must begin at the
            images.
    """

    particles: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    fine_tuning: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 1
    reads_images: bool = False

    @abstractmethod
    def posterior(self, bench: Bench, seed: int) -> Posterior:
        """A fresh posterior."""

    def options(
        self, posterior: Posterior, steps: int, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Further arguments of `bella.fit`, for a training of so many steps with its settings."""
        return {}

    def settings_on(self, bench: Bench) -> dict[str, Any]:
        """All settings of `bella.fit`: the task's, and over them this method's."""
        chosen = bench.settings | dict(self.settings)
        if bench.task.pretrained:
            chosen |= self.fine_tuning
        return checked(Settings, chosen).model_dump()

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """The settings that it is trained with, wherever they come from."""
        own = super().key(bench, seed) | {"settings": self.settings_on(bench)}
        del own["fine_tuning"]
        return own

    def count(self, posterior: Posterior, inputs: Any, steps: int) -> Costs:
        """Further figures of a trained posterior, given a batch of images."""
        return {}

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Train and predict."""
        split = bench.task.split(seed)
        settings = self.settings_on(bench) | {"seed": seed}
        train = bench.loader(
            *split["train"], settings["batch_size"], shuffle=True, images=self.reads_images
        )
        steps = len(train) * settings["epochs"]
        validation = bench.loader(*split["validation"], images=self.reads_images)
        with PeakMemory(bench.device) as peak, torch.random.fork_rng():
            torch.manual_seed(seed)
            posterior = self.posterior(bench, seed)
            record = fit(
                posterior,
                train,
                validation=validation,
                folder=place / "posterior",
                resume=False,
                progress=False,
                **(settings | {"device": str(bench.device)}),
                **self.options(posterior, steps, settings),
            )
        (place / "posterior" / CHECKPOINT).unlink(missing_ok=True)
        outputs = bench.predict(posterior, seed, draws=self.draws, images=self.reads_images)
        counted = cost(posterior)
        return outputs, {
            "trainable": counted["trainable"],
            "bytes_on_disk": counted["bytes_on_disk"],
            "similarity": weight_similarity(posterior) if self.particles > 1 else math.nan,
            "seconds_training": record.seconds,
            "mb_training": peak.bytes / 1e6,
            "ms_predicting": bench.milliseconds(posterior, draws=self.draws),
        } | self.count(posterior, bench.few_images, steps)
