"""bella: turn a pre-trained PyTorch network into a Bayesian one at the price of a LoRA fine-tune.

posterior = bella.low_rank(network, particles=5, target_modules=("fc1", "fc2"))
move = bella.transport.repulsive(posterior, data_size=len(data))
loss = bella.nll(posterior(x), y)
loss.backward(); move.step(); optimizer.step()
bella.predict(posterior, x).mutual_information
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

POSTERIORS = ("low_rank", "rank1", "full", "sparse_subspace", "laplace")
"""Kinds of posteriors, each the name of the function that makes one."""

_PLACES = {
    "low_rank": "bella.posteriors.low_rank.posterior",
    "rank1": "bella.posteriors.rank1.posterior",
    "full": "bella.posteriors.full",
    "sparse_subspace": "bella.posteriors.sparse.posterior",
    "laplace": "bella.posteriors.laplace.posterior",
    "Posterior": "bella.posterior",
    "Point": "bella.posterior",
    "load": "bella.storage",
    "nll": "bella.likelihood",
    "predict": "bella.prediction.predict",
    "Predictive": "bella.prediction.predictive",
    "evaluate": "bella.evaluation.evaluate",
    "cost": "bella.evaluation.cost",
    "chunks": "bella.memory",
    "recompute": "bella.particles.recompute",
    "checkpoint": "bella.particles.recompute",
    "fit": "bella.training.fit",
    "BellaError": "bella.errors",
}
_MODULES = ("transport", "metrics", "data", "models", "report")

__all__ = [*_PLACES, *_MODULES]


def __getattr__(name: str) -> Any:
    """Import on first use: `import bella` alone loads nothing heavy."""
    if name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"bella.{name}")
    else:
        raise AttributeError(f"module 'bella' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
