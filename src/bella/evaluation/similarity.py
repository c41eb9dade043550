"""How alike particles are, in their weights."""

from __future__ import annotations

import math

import torch

from bella.particles.layer import Factors
from bella.posterior import Posterior
from bella.transport.gram import inner_dense, inner_low_rank


@torch.no_grad()
def weight_similarity(posterior: Posterior) -> float:
    """Mean cosine of the angle between two particles' changes, over all adapted weights.

    Taken from the Gram matrices; heads, which all start alike, count only where nothing else
    differs. NaN for one particle, or where a particle has not moved.

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
    if n == 1 or not bool((norms > 0).all()):
        return math.nan
    cosine = total / (norms[:, None] * norms)
    return float((cosine.sum() - n) / (n * (n - 1)))
