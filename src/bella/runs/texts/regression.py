"""``regression``: a text, or a pair of texts, and a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from bella.data.records import Records
from bella.errors import BellaError
from bella.evaluation.evaluate import collect, evaluate_predictive
from bella.files import shown
from bella.likelihood import with_variance
from bella.models.language import OpenedLanguage, open_language
from bella.models.opened import seeded
from bella.prediction.numbers import GaussianPredictive
from bella.prediction.predict import predict
from bella.runs.texts.base import Asked, Facts, inputs_of, rounded
from bella.runs.texts.classification import Classification
from bella.runs.texts.config import TextConfig


class Regression(Classification):
    """A text's number. It is learnt scaled to a mean of 0 and a variance of 1 over the training
    rows, and told in its own units."""

    name: ClassVar[str] = "regression"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = dict(Classification.roles) | {
        "label": ("label", "score", "rating", "stars", "target", "value", "y")
    }
    heads: ClassVar[bool] = False
    classes: ClassVar[bool] = False
    wrapped: ClassVar[str] = "its network says a variance beside the number"
    alone: ClassVar[str] = "a mixture pools probabilities of classes, and a number has none"
    unknown: ClassVar[float] = math.inf

    def learn(self, records: Records, columns: Mapping[str, str]) -> Facts:
        """Mean and standard deviation of the numbers."""
        numbers = torch.tensor(self._numbers(records, columns), dtype=torch.double)
        std = float(numbers.std(correction=0)) if len(numbers) else 0.0
        if not std > 0:
            raise BellaError(
                f"Column {columns['label']!r} of {records.name} holds one number alone: there is "
                "nothing to learn."
            )
        return {"mean": float(numbers.mean()), "std": std}

    def classes_of(self, records: Records, columns: Mapping[str, str], facts: Facts) -> Any:
        """Numbers have none."""
        return None

    def _numbers(self, records: Records, columns: Mapping[str, str]) -> list[float]:
        found = []
        for number, cell in enumerate(records.column(columns["label"]), 1):
            try:
                value = float(cell)
            except (TypeError, ValueError):
                value = math.nan
            if not math.isfinite(value):
                raise BellaError(
                    f"Row {number} of {records.name} has {shown(cell)} in column "
                    f"{columns['label']!r}, and regression needs a number there (its columns are "
                    f"{', '.join(records.columns)})."
                )
            found.append(value)
        return found

    def labels_of(self, records: Records, asked: Asked) -> list[float]:
        """The numbers, scaled."""
        mean, std = asked.facts["mean"], asked.facts["std"]
        return [(value - mean) / std for value in self._numbers(records, asked.columns)]

    def open(self, config: TextConfig, facts: Facts) -> OpenedLanguage:
        """A network with a mean and a log variance: of each example, or one that is learned."""
        opened = open_language(config.network, 2, config.seed, quantised=config.quantised)
        network, (head,) = opened.network, opened.defaults.modules_to_save
        network.likelihood = "gaussian"  # type: ignore[assignment]
        if config.variance == "learned":
            before: Any = network.get_submodule(head)
            with seeded(config.seed):
                one = nn.Linear(before.in_features, 1, before.bias is not None)
            network.set_submodule(head, one.to(before.weight.device, before.weight.dtype))
            with_variance(network, head)
        return opened

    def evaluate(
        self, posterior: Any, loader: Any, ood: Mapping[str, Any], facts: Facts, **options: Any
    ) -> dict[str, float]:
        """The figures of `bella.evaluate`, in the numbers' own units."""
        mean, std = facts["mean"], facts["std"]

        def run(data: Any) -> tuple[GaussianPredictive, torch.Tensor]:
            said, labels = collect(posterior, data, **options)
            return said.scaled(mean, std), mean + std * labels

        return evaluate_predictive(*run(loader), ood={name: run(ood[name]) for name in ood})

    def predict(
        self, posterior: Any, loader: Any, facts: Facts, **options: Any
    ) -> list[dict[str, Any]]:
        """Mean, standard deviation, the 90% interval, entropy and mutual information."""
        whole = self.said(posterior, loader, facts, **options)
        low, high = whole.interval(0.9)
        columns = {
            "mean": rounded(whole.mean),
            "std": rounded(whole.std),
            "low_90": rounded(low),
            "high_90": rounded(high),
            "entropy": rounded(whole.entropy),
            "mutual_information": rounded(whole.mutual_information),
        }
        return [{name: values[i] for name, values in columns.items()} for i in range(len(whole))]

    def said(self, posterior: Any, loader: Any, facts: Facts, **options: Any) -> Any:
        """The predictive of all rows, in the numbers' own units."""
        parts = []
        for inputs in inputs_of(posterior, loader):
            parts.append(predict(posterior, inputs, likelihood="gaussian", **options).cpu())
        return GaussianPredictive.cat(parts).scaled(facts["mean"], facts["std"])
