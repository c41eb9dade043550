"""Which layer carries low-rank particles for which class of base."""

from __future__ import annotations

from torch import nn

from bella.particles.linearity import described, family
from bella.posteriors.low_rank.convolution import LowRankConv
from bella.posteriors.low_rank.embedding import LowRankEmbedding
from bella.posteriors.low_rank.layers import LowRankLayer, LowRankLinear

KINDS: dict[str, type[LowRankLayer]] = {
    "Linear": LowRankLinear,
    "Conv1D": LowRankLinear,
    "Conv1d": LowRankConv,
    "Conv2d": LowRankConv,
    "Conv3d": LowRankConv,
    "Embedding": LowRankEmbedding,
}
"""By the class of torch (or Hugging Face's Conv1D) that the base is or comes from."""


def kind_of(module: nn.Module) -> type[LowRankLayer] | None:
    """The particle layer for a base module; ``None`` where there is none."""
    return KINDS.get(family(module) or "")


def why_no_kind(name: str, module: nn.Module) -> str | None:
    """A sentence for a module that no kind is for; ``None`` where there is one."""
    if kind_of(module) is not None:
        return None
    return (
        f"target_modules names {name!r}, a {described(module)}: low-rank particles exist for "
        f"{', '.join(list(KINDS)[:-1])} and {list(KINDS)[-1]} layers, so name those inside it."
    )
