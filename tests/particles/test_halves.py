"""A float32 as its bfloat16 and the rest: the same bits, in half the memory beside it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bella.particles.halves import Halves


def joined(x):
    return Halves(x, x.bfloat16()).join()


def same_bits(x):
    return torch.equal(joined(x).view(torch.int32), x.view(torch.int32))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=64))
def test_any_bits_come_back(bits):
    assert same_bits(torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32))


def test_what_lies_between_two_bfloat16_and_what_is_no_number_comes_back():
    half = 2.0**-8  # of the step between 1 and the next bfloat16
    between = [1 + half, 1 + 3 * half, -1 - half, -1 - 3 * half, 1 + half + 2**-20]
    odd = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 3.4e38, -3.4e38]
    assert same_bits(torch.tensor(between + odd))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(0, 3),
        torch.randn(5, 7).T,
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    ],
    ids=["none", "transposed", "channels last"],
)
def test_shapes_and_strides_are_kept(x):
    assert same_bits(x)
    assert joined(x).stride() == x.stride()


def test_a_write_to_the_bfloat16_is_seen():
    upper = (x := torch.randn(20, 20)).bfloat16()
    halves = Halves(x, upper)
    assert not halves.changed
    upper[3, 4] += 1
    assert halves.changed


def test_it_keeps_two_bytes_a_number():
    x = torch.randn(300, 300)
    halves = Halves(x, x.bfloat16())
    assert halves.lower.nbytes == x.nbytes // 2
    assert len(halves.bits) < 20  # one in 65,536 lies between two, half of those round down
