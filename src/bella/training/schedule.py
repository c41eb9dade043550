"""How the learning rate goes over a run."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear rise over the first ``warmup`` of all steps, then a cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    progress = (step - rise) / max(steps - rise, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
