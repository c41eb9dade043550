"""Sets of active weights: values at sorted positions of a flattened weight. Pure functions.

An index is an int32 tensor of ascending positions; ``None`` means that every position is active.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from bella.errors import BellaError

PIECE = 2**20
"""Elements that are sorted at once."""

ESCAPE = 255
"""In a file, the byte that says: 255 positions further, and no active one among them."""


def scatter(values: Tensor, index: Tensor | None, shape: torch.Size) -> Tensor:
    """The dense weight: ``values`` (k,) at their positions, 0 elsewhere."""
    if index is None:
        return values.reshape(shape)
    return values.new_zeros(shape.numel()).scatter_(0, index.long(), values).reshape(shape)


def gather(dense: Tensor, index: Tensor | None) -> Tensor:
    """The elements of a dense weight at the active positions, (k,)."""
    flat = dense.reshape(-1)
    return flat if index is None else flat.index_select(0, index)


def rows_of(index: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Where each row (out, in) begins in the index, (out + 1,), and the columns, (k,); int32."""
    rows, columns = shape
    starts = torch.arange(0, rows * columns + 1, columns, device=index.device)
    return torch.searchsorted(index.long(), starts, out_int32=True), index % columns


def compressed(values: Tensor, rows: tuple[Tensor, Tensor], shape: torch.Size) -> Tensor:
    """The weight (out, in) as compressed sparse rows; its values share memory."""
    with warnings.catch_warnings():  # that this layout is in beta is known
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(*rows, values, shape, check_invariants=False)


def largest_inactive(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` largest |values| outside of the index (fewer if there are fewer).

    It goes piece by piece: sorting all of a large layer at once takes six times its memory.
    """
    best = values.new_empty(0), index.new_empty(0, dtype=torch.long)
    for first in range(0, len(values), PIECE):
        sizes = values[first : first + PIECE].abs()
        ends = index.new_tensor([first, first + len(sizes)])
        low, high = torch.searchsorted(index, ends).tolist()
        sizes[index[low:high].long() - first] = -1.0
        here = torch.arange(first, first + len(sizes), device=values.device)
        sizes, here = torch.cat((best[0], sizes)), torch.cat((best[1], here))
        top = sizes.topk(min(count, len(sizes)))
        best = top.values, here[top.indices]
    return best[1][best[0] >= 0]


def encode(index: Tensor, numel: int) -> Tensor:
    """An index as bytes for a file: gaps of one byte, or one bit a position where that is smaller.

    Args:
        index: ascending positions, (k,).
        numel: number of positions.

    Returns:
        uint8; its first byte is 0 for gaps and 1 for bits.
    """
    index = index.cpu().long()
    gaps = index.diff(prepend=index.new_tensor([-1])) - 1
    if len(index) + int((gaps // ESCAPE).sum()) <= -(-numel // 8):
        code, kind = _gap_bytes(gaps), 0
    else:
        code, kind = _bit_bytes(index, numel), 1
    return torch.cat((code.new_tensor([kind]), code))


def decode(code: Tensor, numel: int) -> Tensor:
    """The index (int32) that `encode` wrote.

    Raises:
        BellaError: it did not: products read and write at these positions without looking again.
    """
    if code.dtype != torch.uint8 or code.dim() != 1 or not len(code):
        raise BellaError("The positions of a sparse layer's weights are damaged: copy them anew.")
    found = _decoded(code, numel)
    if len(found) and not 0 <= int(found[-1]) < numel:  # ascending by the way they are written
        raise BellaError(
            f"The positions of a sparse layer's weights go beyond its {numel} weights: this is the "
            "file of another network."
        )
    return found.int()


def _decoded(code: Tensor, numel: int) -> Tensor:
    kind, code = int(code[0]), code[1:].cpu()
    if kind:
        bits = (code.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
        return bits.reshape(-1)[:numel].nonzero().flatten()
    passed = code.long().cumsum(0)
    last = code != ESCAPE
    found = passed[last]
    # Each active position before this one is itself a step of one.
    return found + torch.arange(len(found))


def _gap_bytes(gaps: Tensor) -> Tensor:
    """Each gap as its number of `ESCAPE` bytes and one byte of rest."""
    escapes = gaps // ESCAPE
    ends = (escapes + 1).cumsum(0) - 1
    code = torch.full((int(ends[-1]) + 1,), ESCAPE, dtype=torch.uint8)
    code[ends] = (gaps % ESCAPE).to(torch.uint8)
    return code


def _bit_bytes(index: Tensor, numel: int) -> Tensor:
    bits = torch.zeros(-(-numel // 8) * 8, dtype=torch.uint8)
    bits[index] = 1
    weights = 1 << torch.arange(8)
    return (bits.reshape(-1, 8) * weights).sum(1).to(torch.uint8)
