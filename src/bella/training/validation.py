"""What the particles say of the validation data between two epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from bella.classes import ClassAxis
from bella.errors import BellaError
from bella.inputs import split
from bella.likelihood import by_name
from bella.posterior import Posterior
from bella.training.checks import finite_predictions
from bella.training.gradients import Gradients


class Validation:
    """Validates a posterior as it trains: in the same precision, as many particles a pass.

    Args:
        posterior: whose predictive it is.
        data: batches, read once for each validation.
        gradients: how training runs the particles.
        likelihood: a name in `bella.likelihood.LIKELIHOODS`.

    Attributes:
        data: the batches; a cache of what the particles share may take their place.
    """

    def __init__(self, posterior: Posterior, data: Any, gradients: Gradients, likelihood: str):
        self.posterior = posterior
        self.data = data
        self.gradients = gradients
        self.likelihood = likelihood

    def check(self) -> None:
        """Validate on the first batch with labels that count, so that what cannot be validated is
        refused before it has trained for an epoch.

        Raises:
            BellaError: it cannot.
        """
        kind = self.gradients.likelihood or by_name("classes")
        for batch in self.data:
            if bool(kind.counted(split(batch)[2]).any()):
                try:
                    self.run([batch])
                except BellaError as error:
                    raise BellaError(f"The validation data do not work: {error}") from error
                return
        raise BellaError(
            "The validation data are empty, or all of their labels are -100 (numbers: NaN): leave "
            "them out."
        )

    @torch.no_grad()
    def run(self, batches: Iterable[Any] | None = None) -> dict[str, float]:
        """NLL (nats) and accuracy (of numbers RMSE) of the predictive on all data, or on some
        batches of them.

        Raises:
            DivergedError: finite particles make infinite predictions.
            BellaError: the data do not fit the network or the likelihood.
        """
        from bella.evaluation.evaluate import collect, headline

        kind = self.gradients.likelihood or by_name("classes")
        sums: dict[str, float] = {}
        count, axis = 0, ClassAxis()
        with self.gradients.precision.autocast(), finite_predictions(self.posterior):
            # Batch by batch: the logits of a vocabulary for all data would fit nowhere.
            for batch in self.data if batches is None else batches:
                if not bool(kind.counted(split(batch)[2]).any()):
                    continue
                predictive, labels = collect(
                    self.posterior,
                    iter((batch,)),  # a list might be one of examples
                    likelihood=self.likelihood,
                    class_axis=axis,
                    # Before the first step nobody knows how many particles fit: then one at a time.
                    particles_per_pass=self.gradients.at_once or 1,
                )
                said = self.posterior.ranks.gather(predictive.logits, self.posterior.total)
                predictive = replace(predictive, logits=said)
                counted = int(predictive.kind.counted(labels).sum())
                for name, value in headline(predictive, labels).items():
                    sums[name] = sums.get(name, 0.0) + value * counted
                count += counted
        means = {name: value / count for name, value in sums.items()}
        if "mse" in means:
            means["rmse"] = math.sqrt(means.pop("mse"))
        return {f"validation_{name}": v for name, v in means.items()}
