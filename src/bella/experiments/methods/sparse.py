"""SSVI: a Gaussian on a tenth of the weights, the others zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bella.experiments.methods.base import Costs
from bella.experiments.methods.converted import Converted
from bella.experiments.methods.trained import moved
from bella.inputs import arguments
from bella.posterior import Posterior
from bella.posteriors.sparse.flops import flops
from bella.posteriors.sparse.posterior import SparsePosterior
from bella.recipes import CHANGES, KINDS, train_ssvi


@dataclass(frozen=True, kw_only=True)
class Sparse(Converted):
    """`bella.sparse_subspace`, from the largest of the network's own weights."""

    recipe: str = "ssvi"

    def options(
        self, posterior: Posterior, steps: int, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The topology, and an optimiser whose state follows it."""
        return train_ssvi(posterior, steps, settings)

    def count(self, posterior: Posterior, inputs: Any, steps: int) -> Costs:
        """Operations of training beside dense mean-field VI's."""
        assert isinstance(posterior, SparsePosterior)
        args, kwargs = arguments(inputs)
        counted = flops(posterior, *args, interval=max(1, steps // CHANGES), **kwargs)
        return {
            "train_flops": counted["train"],
            "train_flops_ratio": counted["train_ratio"],
            "density": posterior.density,
        }


def _row(name: str, title: str, density: float) -> Sparse:
    return Sparse(
        name=name,
        title=title,
        build={"density": density},
        draws=KINDS["ssvi"].draws,
        # The paper's weight on the divergence, which rises over the first half.
        settings=moved("ensemble") | {"kl_weight": 0.01},
        fine_tuning={"learning_rate": KINDS["ssvi"].settings["learning_rate"]},
    )


ROWS = (
    _row("vi", "mean-field VI (dense)", 1.0),
    _row("ssvi", "SSVI (density 0.1)", 0.1),
    _row("ssvi-0.05", "SSVI (density 0.05)", 0.05),
)
