"""What a frozen base keeps of what it sees: running means, spectral vectors, a user's own.

The base of low-rank particles is frozen, and so is what its modules would learn in training passes:
a saved posterior names its base by a hash, and must mean the same on the same pre-trained weights.
Known keepers are put into evaluation mode. Others are found by a pass that is looked at, with every
buffer put back, and are kept in evaluation mode from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from bella.errors import BellaError
from bella.particles.copies import Copies


def frozen_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Modules of the base by name: all but heads, which own their buffers."""
    heads = [f"{n}." for n, module in network.named_modules() if isinstance(module, Copies)]
    return {
        name: module
        for name, module in network.named_modules()
        if not any(f"{name}.".startswith(head) for head in heads)
    }


def keep_statistics(network: nn.Module) -> None:
    """Put every frozen module that is known to keep statistics into evaluation mode."""
    for module in frozen_modules(network).values():
        norm = isinstance(module, nn.modules.batchnorm._NormBase | _SpectralNorm)
        hooks = module._forward_pre_hooks.values()
        if norm or any(isinstance(hook, SpectralNorm) for hook in hooks):
            module.training = False


@torch.no_grad()
def moved_by(network: nn.Module, run: Callable[[], Any]) -> tuple[str, ...]:
    """Names of the frozen modules that change their buffers in a training pass.

    All buffers are put back, but caches, which are made anew and stored nowhere; no random number
    is used up. Modules that are found are left in evaluation mode.

    Args:
        network: with its particle layers in place, in training mode.
        run: the pass.

    Raises:
        BellaError: a buffer changes in evaluation mode as well, or a frozen parameter changes.
    """
    parts = frozen_modules(network)
    moved: list[str] = []
    looking = any(map(_may_move, parts.values()))
    try:
        while looking:  # again where something was found, to see that it is quiet now
            found = _moved_once(network, parts, run)
            loud = next((name for name in found if not parts[name].training), None)
            if loud is not None:
                raise BellaError(
                    f"Module {loud!r} of the frozen base changes its buffers also in evaluation "
                    "mode, so it does not stay what it was: keep what it counts outside of its "
                    "buffers."
                )
            for name in found:
                parts[name].training = False
            moved += found
            looking = bool(found)
    except BaseException:
        for name in moved:
            parts[name].training = True
        raise
    return tuple(moved)


def _moved_once(
    network: nn.Module, parts: dict[str, nn.Module], run: Callable[[], Any]
) -> list[str]:
    """What one pass moves; all is put back, whatever happens."""
    frozen = {
        f"{name}.{key}".lstrip("."): (value, value._version)
        for name, module in parts.items()
        for key, value in module._parameters.items()
        if value is not None and not value.requires_grad
    }
    buffers = [
        Kept(name, key, buffer, buffer._version, buffer.clone())
        for name, module in parts.items()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.random.fork_rng(list({x.device for x in network.parameters() if x.is_cuda})):
            run()
    finally:
        found = [kept.owner for kept in buffers if kept.put_back(parts[kept.owner])]
    changed = [name for name, (value, version) in frozen.items() if value._version != version]
    if changed:
        raise BellaError(
            f"The frozen parameter {changed[0]!r} changes in every pass (an Embedding with "
            "max_norm does so), and no saved posterior would fit its base again: set it right "
            "first, or train it."
        )
    return list(dict.fromkeys(found))


@dataclass
class Kept:
    """A buffer as it was before a pass."""

    owner: str
    key: str
    buffer: Tensor
    version: int
    value: Tensor

    def put_back(self, module: nn.Module) -> bool:
        """Make the buffer what it was; returns whether the pass had changed it.

        What a module in evaluation mode changes in buffers that no file holds is a cache, and is
        left to it; so is one that is made anew.
        """
        now = module._buffers.get(self.key)
        cache = self.key in module._non_persistent_buffers_set
        if now is self.buffer:
            if now._version == self.version or torch.equal(now, self.value):
                return False
            if cache and not module.training:
                return False
            now.copy_(self.value)
            return True
        if cache:
            return False
        same = now is not None and now.shape == self.value.shape and torch.equal(now, self.value)
        self.buffer.copy_(self.value)
        module._buffers[self.key] = self.buffer
        return not same


def _may_move(module: nn.Module) -> bool:
    """Whether a pass could change tensors of the module: it trains and has buffers."""
    rescales = isinstance(module, nn.Embedding) and module.max_norm is not None
    return rescales or (module.training and any(b is not None for b in module._buffers.values()))
