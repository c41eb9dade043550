"""What several particles say, in one pass: a Dirichlet distribution over their probabilities.

A network's logits are read as log concentrations, α_c(x) = exp(logit_c(x)). Their softmax is the
mean distribution; their size α_0 = Σ_c α_c, which a softmax does not see, says how much the
particles disagree. With ψ the digamma function

    mean    p̂_c = α_c / α_0
    expected entropy    E[H] = -Σ_c p̂_c (ψ(α_c + 1) - ψ(α_0 + 1))
    mutual information  H[p̂] - E[H] >= 0

Source:
    Malinin, Mlodozeniec and Gales 2020, Ensemble distribution distillation, eq. 7 to 9; Malinin and
    Gales 2018, Predictive uncertainty estimation via prior networks, the appendix on measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bella.posterior import Posterior
from bella.prediction.mixture import check_pooled
from bella.prediction.predict import Combined, predict
from bella.prediction.predictive import Predictive


@dataclass(frozen=True, eq=False)
class DirichletPredictive(Predictive):
    """A `bella.Predictive` of one pass that knows how much several particles would disagree.

    Attributes:
        logits: (1, batch, classes), log concentrations.
    """

    @cached_property
    def expected_entropy(self) -> Float[Tensor, "*batch"]:
        """E[H[p]] under the Dirichlet, in nats."""
        alpha = self.logits[0].double().exp()
        total = alpha.sum(-1, keepdim=True)
        terms = self.probs.double() * (torch.digamma(alpha + 1) - torch.digamma(total + 1))
        return -terms.sum(-1).to(self.logits.dtype)

    @cached_property
    def mutual_information(self) -> Float[Tensor, "*batch"]:
        """H[E p] - E[H[p]] >= 0, in nats."""
        return (self.entropy - self.expected_entropy).clamp_min(0)


class Distilled(Combined):
    """One particle that says what several said, made by `bella.distill`.

    Args:
        posterior: of one particle, whose logits are log concentrations. ``posterior.save`` keeps
            it, and ``bella.Distilled(bella.load(folder, network))`` reads it again.
        figures: how well it follows, for people.
    """

    def __init__(self, posterior: Posterior, figures: dict[str, Any] | None = None):
        super().__init__()
        self.posterior = posterior
        self.figures = figures or {}

    @property
    def particles(self) -> int:
        """One."""
        return self.posterior.particles

    @property
    def stochastic(self) -> bool:
        """Whether its weights are drawn: they are not."""
        return False

    def predict(self, inputs: Any, **options: Any) -> DirichletPredictive:
        """The predictive of a batch, from one pass.

        Raises:
            BellaError: see `bella.predict`.
        """
        said = predict(self.posterior, inputs, **options)
        check_pooled(said)
        return DirichletPredictive(said.logits)

    def around(self, logits: Tensor, inputs: Any) -> DirichletPredictive:
        """See `Combined.around`."""
        return DirichletPredictive(logits)

    def save(self, folder: str | Path) -> Path:
        """Write the particle, as `Posterior.save` does."""
        return self.posterior.save(folder)
