"""Embeddings that carry low-rank particles: particle i looks up in the table W0 + s (B_i A_i)ᵀ.

A row of the change is s B_i a, with a the row's column of A_i, so a lookup costs what it did and r
products more. The table's change is (out, in) = (embedding, vocabulary) as a Linear's on one-hot
inputs would be.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.axis import ParticleAxis
from bella.particles.linearity import (
    example_of,
    first_line,
    is_plain,
    near,
    tolerance_of,
    undisturbed,
)
from bella.posteriors.low_rank.layers import LowRankLayer


class LowRankEmbedding(LowRankLayer):
    """An Embedding, scaled ones too. The row of ``padding_idx`` is every particle's own as it was:
    its column of A starts at 0 and gets no gradient."""

    base: nn.Embedding

    def __init__(self, name: str, axis: ParticleAxis, base: nn.Module, rank: int, scale: float):
        if base.max_norm is not None or base.scale_grad_by_freq:
            raise BellaError(
                f"Layer {name!r} is an Embedding that rescales its rows or their gradients "
                "(max_norm, scale_grad_by_freq), which one table for all particles cannot do: "
                "leave it out of target_modules."
            )
        super().__init__(name, axis, base, rank, scale)

    def look_at_base(self, rank: int) -> str | None:
        """Of a forward of its own it is asked whether it only looks up."""
        self.plain = is_plain(self.base, nn.Embedding)
        return None if self.plain else why_not_lookup(self.base)

    def matrix_shape(self) -> tuple[int, int]:
        """(vocabulary, embedding)."""
        return self.base.num_embeddings, self.base.embedding_dim

    def change_to_weight(self, change: Tensor) -> Tensor:
        """The table has a row for each input."""
        return change.mT

    @torch.no_grad()
    def effective(self) -> nn.Module:
        """The table as the base answers it."""
        numbers = torch.arange(self.base.num_embeddings, device=self.A.device)
        with undisturbed(self.base):
            rows = [self.base(part.unsqueeze(0))[0] for part in numbers.split(4096)]
        return nn.Embedding.from_pretrained(torch.cat(rows), padding_idx=self.base.padding_idx)

    def start(
        self, particle: int, init: str, gain: float, b_std: float, generator: torch.Generator
    ) -> None:
        """As `LowRankLayer.start`, as large as for one input, since a lookup meets one element of
        each row of A; padding keeps its row."""
        super().start(particle, init, gain * math.sqrt(self.A.shape[-1]), b_std, generator)
        if self.base.padding_idx is not None:
            self.A.data[particle, :, self.base.padding_idx] = 0

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """That of the table: a lookup multiplies nothing that autocast would cast.

        Raises:
            BellaError: ``x`` holds no numbers of rows.
        """
        if x.dtype not in (torch.int64, torch.int32):
            raise BellaError(
                f"Layer {self.name!r} is an Embedding and met inputs of {x.dtype}: it looks up "
                "rows by int64 or int32 numbers."
            )
        return example_of(self.base).dtype

    def down(self, x: Tensor, A: Tensor) -> Tensor:
        """The columns of A that x names."""
        return self.flat(F.embedding(x.long(), A.mT, self.base.padding_idx))

    def flat(self, y: Tensor) -> Tensor:
        """All but the first and last axis are positions."""
        return y.reshape(y.shape[0], -1, y.shape[-1])

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """The positions back on their axes."""
        return flat.reshape(-1, *like.shape[1:])


def why_not_lookup(base: nn.Module) -> str | None:
    """What keeps an embedding from giving each number its own row wherever it stands."""
    like, tolerance = example_of(base), tolerance_of(base)
    if like.is_meta:
        return "has no values yet"
    size: int = base.num_embeddings  # type: ignore[assignment]
    numbers = (torch.arange(6, device=like.device) * 37 % size).view(2, 3)
    with undisturbed(base):
        try:
            rows, turned, alone = base(numbers), base(numbers.flip(0, 1)), base(numbers[:1])
        except Exception as error:
            return f"cannot be called on numbers of rows ({first_line(error)})"
        if not (isinstance(rows, Tensor) and rows.shape == (2, 3, base.embedding_dim)):
            return f"does not return {base.embedding_dim} numbers for each of its inputs"
        if not (near(turned.flip(0, 1), rows, tolerance) and near(alone, rows[:1], tolerance)):
            return "does more than look up rows"
    return None
