"""Particles that become one, or run away, are told of while the run goes on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

PAIRS = ("closest", "farthest")
"""Distances of the nearest and of the farthest two particles."""

FEW = 1e-3
"""Of the farthest distance, or of the largest that the run had: nearer than that is as good as one,
and as far beyond it has run away."""


class Collapse:
    """Looks at the distances of particles every few steps, and warns of each thing once."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def look(
        self,
        apart: Float[Tensor, "particles particles"],
        trace: Sequence[Mapping[str, float]],
    ) -> dict[str, float]:
        """Figures of this moment.

        Args:
            apart: distances of two particles; of no particle, where nothing moves.
            trace: figures of the moments before.

        Returns:
            ``distance``, the root of their mean square, and of several particles ``closest`` and
            ``farthest``.
        """
        n = len(apart)
        found = {"distance": float((apart.square().sum() / max(n * (n - 1), 1)).sqrt())}
        if n < 2:
            return found
        i, j = torch.triu_indices(n, n, 1, device=apart.device)
        pairs = apart[i, j]
        near = int(pairs.argmin())
        closest, farthest = float(pairs[near]), float(pairs.max())
        found |= dict(zip(PAIRS, (closest, farthest), strict=True))
        most = max((row.get("distance", 0.0) for row in trace), default=0.0)
        if farthest < FEW * most:
            self._tell(
                "one",
                f"All particles have come within {farthest:.2g} of each other, where they were "
                f"{most:.2g} apart: they say the same by now; raise the temperature of the "
                "coupling, or lower weight_decay.",
            )
        elif closest < FEW * farthest:
            self._tell(
                "uneven",
                f"Particles {int(i[near])} and {int(j[near])} are {closest:.2g} apart and others "
                f"{farthest:.2g}: the two count as one, or another has run away; see 'closest' and "
                "'farthest' of the record, and change temperature, learning rate or clip.",
            )
        return found

    def _tell(self, what: str, sentence: str) -> None:
        if what not in self.told:
            self.told.add(what)
            warnings.warn(sentence, stacklevel=4)
