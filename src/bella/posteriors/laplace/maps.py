"""The linear maps of a particle: each weight matrix W with the inputs and gradients it sees.

A low-rank layer y = W0 x + s B (A x) holds two maps: A takes x (in) and feels s Bᵀδ (rank); B takes
s A x (rank) and feels δ (out), where δ is the gradient at the layer's output. So one side of each
is as small as the rank. A Linear head holds one, its bias a last column of W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.copies import LinearCopies
from bella.particles.layer import ParticleLayer
from bella.posterior import Posterior
from bella.posteriors.low_rank.convolution import LowRankConv
from bella.posteriors.low_rank.embedding import LowRankEmbedding
from bella.posteriors.low_rank.layers import LowRankLayer


class LinearMap(ABC):
    """One weight matrix (out, in) of the one particle, a -> W a at every position.

    Args:
        layer: the layer that holds it.
        names: its parameters' names in the layer; the matrix is their columns side by side.
    """

    def __init__(self, layer: ParticleLayer, *names: str):
        self.layer = layer
        self.names = names

    @property
    def name(self) -> str:
        """The matrix's name in the network."""
        return f"{self.layer.name}.{self.names[0]}"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters (1, ...), by their names in the network."""
        own = dict(self.layer.named_parameters())
        return {f"{self.layer.name}.{name}": own[name] for name in self.names}

    def matrix(self) -> Float[Tensor, "out in"]:
        """W as it is now, a copy."""
        parts = [p.detach()[0] for p in self.parameters().values()]
        return torch.cat([part.reshape(len(part), -1) for part in parts], 1)

    def split(self, matrix: Float[Tensor, "out in"]) -> dict[str, Tensor]:
        """Another value of W as values of the parameters."""
        parameters = self.parameters()
        widths = [p[0, 0].numel() for p in parameters.values()]
        parts = matrix.split(widths, 1)
        return {
            name: part.reshape(p.shape)
            for (name, p), part in zip(parameters.items(), parts, strict=True)
        }

    @abstractmethod
    def inputs(self, x: Tensor) -> Float[Tensor, "rows positions in"]:
        """What W multiplies, from the layer's input."""

    @abstractmethod
    def gradients(self, grad: Tensor) -> Float[Tensor, "rows positions out"]:
        """The gradient at W's output, from that at the layer's output."""


class Down(LinearMap):
    """A of a low-rank layer."""

    layer: LowRankLayer

    def inputs(self, x: Tensor) -> Tensor:
        """The input; for a convolution its patches: the same convolution with each unit kernel."""
        layer = self.layer
        if isinstance(layer, LowRankConv) and not layer.pointwise:
            units = torch.eye(layer.A.shape[-1], dtype=x.dtype, device=x.device)
            return layer.down(x, units)
        return layer.flat(x)

    def gradients(self, grad: Tensor) -> Tensor:
        """The product s Bᵀ δ."""
        delta = self.layer.flat(grad)
        return self.layer.scale * delta @ self.layer.B.detach()[0].to(delta.dtype)


class Up(LinearMap):
    """B of a low-rank layer."""

    layer: LowRankLayer

    def inputs(self, x: Tensor) -> Tensor:
        """The product s A x."""
        return self.layer.scale * self.layer.down(x, self.layer.A.detach()[0].to(x.dtype))

    def gradients(self, grad: Tensor) -> Tensor:
        """The δ of every position."""
        return self.layer.flat(grad)


class Head(LinearMap):
    """Weight and bias of a Linear head."""

    def inputs(self, x: Tensor) -> Tensor:
        """The input, with a 1 for the bias."""
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        ones = flat.new_ones(*flat.shape[:2], len(self.names) - 1)
        return torch.cat([flat, ones], -1)

    def gradients(self, grad: Tensor) -> Tensor:
        """The δ of every position."""
        return grad.reshape(grad.shape[0], -1, grad.shape[-1])


def maps_of(posterior: Posterior) -> list[LinearMap]:
    """The linear maps of a posterior's one particle.

    Raises:
        BellaError: there are more particles, or a layer is neither low-rank nor a Linear head.
    """
    if posterior.particles != 1:
        raise BellaError(
            f"A Laplace approximation is made around one trained particle and this posterior has "
            f"{posterior.particles}: train one with particles=1."
        )
    found: list[LinearMap] = []
    for name, layer in posterior.layers().items():
        if isinstance(layer, LowRankEmbedding):
            raise BellaError(
                f"Layer {name!r} is an Embedding, whose curvature has a row for each word and is "
                "not covered here: leave it out of target_modules."
            )
        if isinstance(layer, LowRankLayer):
            found += [Down(layer, "A"), Up(layer, "B")]
        elif isinstance(layer, LinearCopies):
            found.append(Head(layer, *(f"values.{key}" for key in layer.values)))
        else:
            raise BellaError(
                f"Layer {name!r} ({layer.extra_repr()}) is no low-rank layer and no Linear head, "
                "which are what a Laplace approximation covers here: name the Linear inside it in "
                "modules_to_save."
            )
    return found
