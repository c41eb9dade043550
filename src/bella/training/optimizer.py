"""The optimiser and schedule of a run, over a posterior's parameter groups."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from bella.errors import BellaError
from bella.posterior import Posterior
from bella.training.schedule import learning_rate_factor
from bella.training.settings import Settings

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""From the groups of `Posterior.parameter_groups` to an optimiser over them."""


def make_optimizer(
    posterior: Posterior, settings: Settings, make: MakeOptimizer | None
) -> torch.optim.Optimizer:
    """AdamW, or what the caller makes of the parameter groups.

    Raises:
        BellaError: fp16 is asked for, and what trains is float16 already.
    """
    decay = settings.weight_decay
    if make is None:
        groups = posterior.parameter_groups(decay)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    else:
        optimizer = make(posterior.parameter_groups(decay) if decay else free_to_decay(posterior))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if settings.precision == "fp16" and any(p.dtype == torch.float16 for p in trained):
        raise BellaError(
            "precision='fp16' scales the gradients of float32 parameters, and some that train are "
            "float16: use posterior.float(), or precision='float32'."
        )
    return optimizer


def free_to_decay(posterior: Posterior) -> list[dict[str, Any]]:
    """The parameter groups without a word on weight decay where it is the optimiser's to choose."""
    groups = posterior.parameter_groups(1.0)
    return [{k: v for k, v in group.items() if k != "weight_decay" or v == 0} for group in groups]


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> LambdaLR:
    """See `learning_rate_factor`."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, warmup))


def begin(schedule: LambdaLR) -> None:
    """The first step of a schedule. torch warns where no step of the optimiser came before it, and
    a mover or the gradient scaler may have left that out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        schedule.step()
