"""Frozen weights in the dtype that they are multiplied in.

Autocast casts the factors of a product to fewer bits. What it casts of parameters that train it
keeps until the pass is over; frozen ones it casts anew at every call, which can take as long as the
products. Held in fewer bits from the start they are the same numbers, bit for bit: those weights
and biases are held that autocast would cast, of Linear layers and convolutions, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import BellaError
from bella.particles.halves import Halves
from bella.particles.linearity import TORCHS, computes_as, family, has_own_weight

_turns = threading.RLock()


class HeldBase:
    """A base whose weights are, while some block is open, held in fewer bits.

    Attributes:
        dtype: that they are held in; ``None`` while they are as they were.
    """

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None
        self._open = 0
        self._pairs: list[tuple[nn.Parameter, Tensor | Halves]] = []
        self._versions: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"whole": [(p, whole_of(kept).to(p.device)) for p, kept in self._pairs]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is of the whole weights: the block that is open is not its own."""
        HeldBase.__init__(self)
        for parameter, whole in state["whole"]:
            parameter.data = whole

    def enter(
        self, network: nn.Module, own: Collection[int], dtype: torch.dtype, sparing: bool = False
    ) -> None:
        """Open a block; the first one casts.

        Args:
            network: whose frozen weights.
            own: ``id`` of tensors that are the particles' own.
            dtype: to hold them in.
            sparing: see `bella.precision.base_in`.

        Raises:
            BellaError: an open block holds them in another dtype.
        """
        with _turns:
            if self._open and self.dtype != dtype:
                raise BellaError(
                    f"The base is held in {self.dtype} by a block that is open, and {dtype} is "
                    "asked for: leave that block first."
                )
            if not self._open:
                self.dtype = dtype
                try:
                    for parameter in [p for p in holdable(network) if id(p) not in own]:
                        whole, fewer = parameter.data, parameter.data.to(dtype)
                        self._pairs.append((parameter, kept(whole, fewer, sparing)))
                        parameter.data = fewer
                        self._versions[id(parameter)] = parameter._version
                except BaseException:  # no memory, or somebody stops it
                    self._put_back()
                    raise
            self._open += 1

    def leave(self) -> None:
        """Close a block; the last one puts the weights back as they were.

        Raises:
            BellaError: somebody wrote to them, or cast them.
        """
        with _turns:
            self._open -= 1
            if not self._open:
                self._put_back()

    def _put_back(self) -> None:
        changed = lost = 0
        while self._pairs:  # one after another, so that no two copies of all are there at once
            parameter, original = self._pairs.pop()
            version = self._versions.pop(id(parameter), parameter._version)
            changed += parameter._version != version or parameter.dtype != self.dtype
            lost += isinstance(original, Halves) and original.changed
            parameter.data = whole_of(original).to(parameter.device)
        self.dtype = None
        if changed or lost:
            became = (
                "cannot be put back: open the network anew"
                if lost
                else "are as they were before: change them outside of that block"
            )
            raise BellaError(
                f"Frozen weights ({max(changed, lost)}) were written to while the base was held in "
                f"fewer bits, and {became}, and let weights train that are to change "
                "(requires_grad), or leave the base as it is (base_dtype='float32')."
            )

    def originals(self) -> dict[int, Tensor | Halves]:
        """By a parameter's ``id`` what it was before it was cast, for `whole_of`."""
        return {id(parameter): original for parameter, original in self._pairs}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block the weights are as they were, and passes need no autocast: to prove by,
        or to be copied. Passes that other threads run meanwhile come to the same, because autocast
        casts what it meets."""
        with _turns:
            fewer = [(parameter, parameter.data) for parameter, _ in self._pairs]
            dtype, self.dtype = self.dtype, None
            for parameter, original in self._pairs:
                parameter.data = whole_of(original).to(parameter.device)
            try:
                yield
            finally:
                self.dtype = dtype
                for parameter, value in fewer:
                    parameter.data = value

    def check(self, network: nn.Module) -> None:
        """Refuse a pass that would multiply what is held in fewer bits as if it were whole.

        Raises:
            BellaError: autocast is not on, or casts to another dtype.
        """
        if self.dtype is None:
            return
        kind = next(network.parameters()).device.type
        if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != self.dtype:
            raise BellaError(
                f"The base is held in {self.dtype} by a block that is open: run passes inside "
                f"torch.autocast({kind!r}, {self.dtype}), or leave the block first."
            )


def kept(whole: Tensor, fewer: Tensor, sparing: bool) -> Tensor | Halves:
    """What is kept of weights beside what they are held in."""
    if sparing and whole.device.type == "cpu" and fewer.dtype == torch.bfloat16:
        return Halves(whole, fewer)
    return whole.cpu()  # an accelerator's memory is for what it works with


def whole_of(original: Tensor | Halves) -> Tensor:
    """Weights as they were, from what is kept of them."""
    return original.join() if isinstance(original, Halves) else original


def holdable(network: nn.Module) -> Iterator[nn.Parameter]:
    """Frozen float32 parameters that nothing reads but products that autocast casts them for."""
    held: dict[int, nn.Parameter] = {}
    others: set[int] = set()
    for module in network.modules():
        own = [p for p in module._parameters.values() if p is not None]
        if multiplies(module):
            held |= {id(p): p for p in own if type(p) is nn.Parameter}
        else:
            others |= {id(p) for p in own}
    for key, parameter in held.items():
        if (
            key not in others
            and not parameter.requires_grad
            and type(parameter.data) is Tensor
            and parameter.dtype == torch.float32
        ):
            yield parameter


def multiplies(module: nn.Module) -> bool:
    """Whether the module is the product of its class, with weights of its own."""
    name = family(module)
    if name is None or name == "Embedding" or not has_own_weight(module):
        return False
    return name == "Conv1D" or computes_as(module, TORCHS[name])
