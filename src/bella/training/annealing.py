"""How much of the divergence counts early in training."""

from __future__ import annotations

from bella.errors import BellaError


def kl_weight(step: int, *, steps_per_epoch: int, epochs: float) -> float:
    """λ_t = min(1, (t + 1) / (steps_per_epoch * epochs)) (Dusenberry et al. 2020).

    Args:
        step: t, counted from 0.
        steps_per_epoch: optimiser steps in an epoch.
        epochs: epochs over which the divergence is phased in; 0 counts it whole from the start.

    Raises:
        BellaError: fewer than one step in an epoch, or a negative number of epochs.
    """
    if steps_per_epoch < 1 or epochs < 0:
        raise BellaError(
            f"steps_per_epoch={steps_per_epoch} and epochs={epochs}: give at least one step and "
            "no negative number of epochs."
        )
    return min(1.0, (step + 1) / (steps_per_epoch * epochs)) if epochs else 1.0
