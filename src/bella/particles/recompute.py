"""Activation checkpointing: chosen modules keep only their inputs and run again in backward.

By then the pass is over, the axis closed, and perhaps another subset chosen: the axis is put
back to where it was when the module ran. Random numbers are those of the first run (PyTorch keeps
their state), and so is autocast.

A network of transformers that was told ``gradient_checkpointing_enable()`` does the same here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint
from torch import nn

from bella.errors import BellaError
from bella.particles import targets
from bella.particles.axis import ParticleAxis
from bella.particles.prefix import entrance_of, exchanged

if TYPE_CHECKING:
    from bella.posterior import Posterior


def checkpoint(posterior: Posterior, modules: targets.Targets | None = None) -> list[str]:
    """Train with less memory and the same gradients: run modules a second time in backward.

    Batch norms inside that train see each batch twice.

    Args:
        posterior: its later training passes are checkpointed.
        modules: names, suffixes or regular expressions; ``None`` for the repeated blocks that hold
            layers with particles, and an empty tuple for none.

    Returns:
        The modules' names.

    Raises:
        BellaError: a name means no module, or there are no such blocks.
    """
    network = posterior.network
    if modules is None:
        found = [(entrance_of(network, layer), layer) for layer in posterior.layers()]
        names = list(dict.fromkeys(block for block, layer in found if block != layer))
        if not names:
            raise BellaError(
                f"{type(network).__name__} has no repeated blocks around its layers with "
                "particles: name the modules to checkpoint."
            )
    else:
        names = targets.find(network, modules, what="modules")
    posterior.checkpointed = tuple(names)
    return names


class Back:
    """Inside a ``with`` block the axis is as it was when this was made.

    Args:
        axis: of the pass that is running.
    """

    def __init__(self, axis: ParticleAxis):
        self.axis = axis
        self.then = dict(vars(axis))

    def __enter__(self) -> None:
        self.now = dict(vars(self.axis))
        vars(self.axis).update(self.then)

    def __exit__(self, *_: Any) -> None:
        vars(self.axis).update(self.now)


def rerun(axis: ParticleAxis, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function whose activations are not kept."""
    back = Back(axis)
    return torch.utils.checkpoint.checkpoint(
        partial(function, **kwargs),
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), back),
    )


@contextmanager
def checkpointing(network: nn.Module, axis: ParticleAxis, names: Collection[str]) -> Iterator[None]:
    """Checkpoint the passes inside the block, if they train.

    Args:
        network: with its particle layers in place.
        axis: theirs.
        names: modules to checkpoint beside those that are told to by transformers.
    """
    with ExitStack() as patches:
        if network.training and torch.is_grad_enabled():
            for name, module in network.named_modules():
                theirs = getattr(module, "gradient_checkpointing", None)
                if theirs is None and name in names:
                    again = partial(rerun, axis, module.forward)
                    patches.enter_context(exchanged(module, "forward", again))
                elif theirs is not None and (theirs or name in names):
                    again = partial(rerun, axis)
                    patches.enter_context(exchanged(module, "gradient_checkpointing", True))
                    patches.enter_context(exchanged(module, "_gradient_checkpointing_func", again))
        yield
