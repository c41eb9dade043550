"""What a bfloat16 lacks of the float32 that it was rounded from, in half the float32's memory.

The two together are the float32, bit for bit: a bfloat16 is the upper 16 bits of a float32, rounded
by the lower 16. Those are kept as they are; where they lie just between two bfloat16, or the number
is none, the upper half does not say which way it was rounded, and the whole bits are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Halves:
    """A float32 tensor as its bfloat16 and the rest.

    Args:
        whole: the tensor, of one axis or more, on a CPU.
        upper: the same in bfloat16, as torch rounds it; it must stay as it is, see `changed`.
    """

    def __init__(self, whole: Tensor, upper: Tensor):
        bits = whole.view(torch.int32)
        self.upper = upper
        # int16 keeps the lowest 16 bits: all of the difference but whether it is half a step up.
        self.lower = (bits - _shifted(upper)).to(torch.int16)
        differ = self._joined() != bits
        self.places = differ.nonzero(as_tuple=True)
        self.bits = bits[self.places]
        self.sum = self._sum()

    def _sum(self) -> int:
        return int(self.upper.view(torch.int16).sum(dtype=torch.int64))

    @property
    def changed(self) -> bool:
        """Whether somebody wrote to the bfloat16, so that the two are no longer one number."""
        return self._sum() != self.sum

    def _joined(self) -> Tensor:
        return _shifted(self.upper).add_(self.lower)

    def join(self) -> Tensor:
        """The float32 tensor."""
        bits = self._joined()
        bits[self.places] = self.bits
        return bits.view(torch.float32)


def _shifted(upper: Tensor) -> Tensor:
    """The bits of a bfloat16 where those of a float32 have them."""
    return upper.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
