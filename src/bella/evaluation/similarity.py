"""How alike particles are, in their weights."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bella.particles.layer import Factors
from bella.posterior import Posterior
from bella.transport.gram import inner_dense, inner_low_rank


@torch.no_grad()
def weight_similarities(posterior: Posterior) -> Float[Tensor, "particles particles"]:
    """Cosine of the angle between every two particles' changes, over all adapted weights.

    Taken from the Gram matrices; heads, which all start alike, count only where nothing else
    differs. NaN where a particle has not moved.

    Source:
        Doan et al., Bella, Table 9.
    """
    n = posterior.particles
    total = torch.zeros(n, n, dtype=torch.float64)
    for site in posterior.sites():
        if isinstance(site, Factors):
            A, B = (p.detach().double().unsqueeze(0) for p in (site.A, site.B))
            total += inner_low_rank(A, B, site.scale)[0].cpu()
        elif site.in_kernel:
            total += inner_dense(site.value.detach().double().flatten(1).unsqueeze(0))[0].cpu()
    norms = total.diagonal().sqrt()
    return total / (norms[:, None] * norms)


def weight_similarity(posterior: Posterior) -> float:
    """The mean of `weight_similarities` over pairs of two particles.

    NaN for one particle, or where a particle has not moved.
    """
    n = posterior.particles
    cosine = weight_similarities(posterior)
    return float((cosine.sum() - n) / (n * (n - 1))) if n > 1 else math.nan
