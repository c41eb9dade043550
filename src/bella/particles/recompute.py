"""Recomputed activations: chosen modules keep only their inputs and run again in backward.

By then the pass is over, and backward may run in another thread: what runs again carries the pass
as it was when the module ran. Random numbers are those of the first run (PyTorch keeps
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
from bella.particles.prefix import Turns, entrance_of, exchanged
from bella.trees import copied, is_object, leaves_of, map_leaves

if TYPE_CHECKING:
    from bella.posterior import Posterior


def recompute(posterior: Posterior, modules: targets.Targets | None = None) -> list[str]:
    """Train with less memory and the same gradients: run modules a second time in backward.

    Batch norms inside that train see each batch twice.

    Args:
        posterior: its later training passes recompute these modules.
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
                "particles: name the modules to recompute."
            )
    else:
        names = targets.find(network, modules, what="modules")
    posterior.recomputed = tuple(names)
    return names


checkpoint = recompute
"""The older name."""


class Back:
    """Inside a ``with`` block a pass goes on from where it was when this was made.

    Args:
        axis: of the pass that is running.
    """

    def __init__(self, axis: ParticleAxis):
        self.axis = axis
        self.then = axis.running.copy()

    def __enter__(self) -> None:
        self.going_on = self.axis.run(self.then.copy())
        self.going_on.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.going_on.__exit__(*error)


def rerun(axis: ParticleAxis, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function whose activations are not kept."""
    if not axis.is_running:  # somebody else's call of the network, meanwhile
        return function(*args, **kwargs)
    back = Back(axis)
    return torch.utils.checkpoint.checkpoint(
        partial(as_at_first(function, args, kwargs), **kwargs),
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), back),
    )


def as_at_first(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Callable:
    """The function, whose later runs meet objects (a key-value cache) as the first run met them: it
    fills them, and what is filled twice is twice as long."""
    empty = [_sharing(x) for x in leaves_of((args, kwargs)) if is_object(x)]
    if not empty:
        return function
    ran = False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal ran
        if ran:
            rest = iter(empty)
            args, kwargs = map_leaves(
                lambda leaf: _sharing(next(rest)) if is_object(leaf) else leaf, (args, kwargs)
            )
        ran = True
        return function(*args, **kwargs)

    return run


def _sharing(leaf: Any) -> Any:
    """A copy of an object, of the same tensors."""
    return copied(leaf, lambda x: x)


def _told_to(module: nn.Module) -> bool | None:
    """What transformers has told a module; ``None`` if it knows of no such thing. Every pass asks
    every module, and one without the attribute would look for it among its parameters first."""
    name = "gradient_checkpointing"
    return getattr(module, name) if name in vars(module) or hasattr(type(module), name) else None


@contextmanager
def recomputing(
    network: nn.Module, axis: ParticleAxis, names: Collection[str], turns: Turns
) -> Iterator[None]:
    """Recompute the passes inside the block in backward, if they train.

    Args:
        network: with its particle layers in place.
        axis: theirs.
        names: modules to recompute beside those that are told to by transformers.
        turns: taken for as long as modules are patched.
    """
    if not (network.training and torch.is_grad_enabled()):
        yield
        return
    chosen = [
        (name, module, theirs)
        for name, module in network.named_modules()
        if (theirs := _told_to(module)) or name in names
    ]
    if not chosen:
        yield
        return
    with turns, ExitStack() as patches:
        for _, module, theirs in chosen:
            if theirs is None:
                again = partial(rerun, axis, module.forward)
                patches.enter_context(exchanged(module, "forward", again))
            else:
                again = partial(rerun, axis)
                patches.enter_context(exchanged(module, "gradient_checkpointing", True))
                patches.enter_context(exchanged(module, "_gradient_checkpointing_func", again))
        yield
