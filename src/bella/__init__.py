"""bella: turn a pre-trained PyTorch network into a Bayesian one at the price of a LoRA fine-tune.

posterior = bella.low_rank(network, particles=5, target_modules=("fc1", "fc2"))
move = bella.transport.repulsive(posterior, data_size=len(data))
loss = bella.nll(posterior(x), y)
loss.backward(); move.step(); optimizer.step()
bella.predict(posterior, x).mutual_information
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; at run time `__getattr__` imports the same
    from bella import data, likelihood, metrics, models, report, transport
    from bella.errors import BellaError
    from bella.evaluation.cost import cost
    from bella.evaluation.evaluate import evaluate
    from bella.interop.peft import from_peft, to_peft
    from bella.kernels import fast_float32
    from bella.likelihood import nll, with_variance
    from bella.memory import chunks
    from bella.particles.recompute import checkpoint, recompute
    from bella.posterior import Posterior
    from bella.posteriors.full import full
    from bella.posteriors.laplace.posterior import laplace
    from bella.posteriors.loading import load, load_mixture
    from bella.posteriors.low_rank.posterior import low_rank
    from bella.posteriors.point import Point
    from bella.posteriors.rank1.posterior import rank1
    from bella.posteriors.sparse.posterior import sparse_subspace
    from bella.prediction.distilled import Distilled
    from bella.prediction.labels import MultiLabelPredictive
    from bella.prediction.mixture import Mixture
    from bella.prediction.numbers import GaussianPredictive
    from bella.prediction.predict import in_precision, predict
    from bella.prediction.predictive import Predictive
    from bella.training.distill import distill
    from bella.training.fit import fit
    from bella.training.mixture import mixture

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
    "Point": "bella.posteriors.point",
    "load": "bella.posteriors.loading",
    "load_mixture": "bella.posteriors.loading",
    "nll": "bella.likelihood",
    "with_variance": "bella.likelihood",
    "in_precision": "bella.prediction.predict",
    "predict": "bella.prediction.predict",
    "Predictive": "bella.prediction.predictive",
    "GaussianPredictive": "bella.prediction.numbers",
    "MultiLabelPredictive": "bella.prediction.labels",
    "Distilled": "bella.prediction.distilled",
    "Mixture": "bella.prediction.mixture",
    "evaluate": "bella.evaluation.evaluate",
    "cost": "bella.evaluation.cost",
    "chunks": "bella.memory",
    "recompute": "bella.particles.recompute",
    "checkpoint": "bella.particles.recompute",
    "fast_float32": "bella.kernels",
    "fit": "bella.training.fit",
    "from_peft": "bella.interop.peft",
    "to_peft": "bella.interop.peft",
    "distill": "bella.training.distill",
    "mixture": "bella.training.mixture",
    "BellaError": "bella.errors",
}
"""The module that each public name lives in.
A name stands here, in the imports above and in ``__all__``; tests/test_public.py compares them."""
_MODULES = ("transport", "likelihood", "metrics", "data", "models", "report")

__all__ = [
    "BellaError",
    "Distilled",
    "GaussianPredictive",
    "Mixture",
    "MultiLabelPredictive",
    "Point",
    "Posterior",
    "Predictive",
    "checkpoint",
    "chunks",
    "cost",
    "data",
    "distill",
    "evaluate",
    "fast_float32",
    "fit",
    "from_peft",
    "full",
    "in_precision",
    "laplace",
    "likelihood",
    "load",
    "load_mixture",
    "low_rank",
    "metrics",
    "mixture",
    "models",
    "nll",
    "predict",
    "rank1",
    "recompute",
    "report",
    "sparse_subspace",
    "to_peft",
    "transport",
    "with_variance",
]

if not TYPE_CHECKING:  # a type checker would otherwise take every misspelt name for Any

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
