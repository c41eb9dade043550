"""A plain network as a posterior of one particle."""

from __future__ import annotations

from torch import nn

from bella.particles.axis import ParticleAxis
from bella.posterior import Posterior


class Point(Posterior):
    """One plain network where a posterior is expected: to predict with it, or to evaluate it.

    Args:
        network: any network; a soup, say, or one particle.
        shared_prefix: name of the module at which it continues from a `Stream`.
    """

    kind = "point"
    settles_passes = False

    def __init__(self, network: nn.Module, shared_prefix: bool | str = False):
        super().__init__(network, ParticleAxis(1), {}, shared_prefix=shared_prefix)
