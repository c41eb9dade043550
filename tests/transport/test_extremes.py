"""Kernels and Grams at the ends: one point, very far, and half precision."""

from __future__ import annotations

import pytest
import torch
from helpers import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bella
from bella.transport.kernels import KERNELS

SIZES = (0.0, 1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e12, 1e15)


def placed(sizes, seed, dtype=torch.float32, kind="low_rank"):
    """Particles whose changes have these sizes; those of one size are one point."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    if kind == "full":
        posterior = bella.full(network, len(sizes))
    else:
        posterior = bella.low_rank(network, len(sizes), 2, ("0", "2"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in posterior.stacked_parameters().items():
            value = torch.randn(parameter[0].shape, generator=generator)
            for i, size in enumerate(sizes):
                scale = 1.0 if name.endswith("A") else size
                parameter[i].copy_(value * scale)
    return posterior


@settings(max_examples=75, deadline=None)
@given(
    st.lists(st.sampled_from(SIZES), min_size=2, max_size=6),
    st.sampled_from(sorted(KERNELS)),
    st.sampled_from(["median", "liu-wang", 1e-6, 1e6]),
    st.sampled_from(["global", "layer"]),
    st.booleans(),
    st.sampled_from(["repulsive", "svgd"]),
    st.sampled_from(["low_rank", "full"]),
)
def test_kernels_and_forces_stay_finite(sizes, kernel, bandwidth, scope, normalize, name, kind):
    posterior = placed(sizes, 0, kind=kind)
    move = bella.transport.by_name(
        name, posterior, data_size=1, kernel=kernel, bandwidth=bandwidth, scope=scope,
        normalize=normalize,
    )  # fmt: skip
    measured = move.coupling.measure()
    for k, slope in zip(measured.k, measured.slope, strict=True):
        assert bool(((k >= 0) & (k <= 1 + 1e-6)).all())
        assert bool((torch.isfinite(slope) & (slope >= 0)).all())
        assert bool((k.diagonal(dim1=-2, dim2=-1) == 1).all())
    for parameter in posterior.stacked_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    move.step()
    for label, parameter in posterior.stacked_parameters().items():
        assert bool(torch.isfinite(parameter.grad).all()), label


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=5),
    st.integers(0, 10**6),
    st.sampled_from(["low_rank", "full"]),
)
def test_grams_of_half_precision_are_those_of_its_numbers(dtype, sizes, seed, kind):
    """Accumulated in float32 or better: the error is that of float32, not of the halves."""
    posterior = placed(sizes, seed, dtype, kind)
    move = bella.transport.repulsive(posterior, data_size=1)
    for group in move.groups:
        found = group.square_distances()
        assert found.dtype == torch.float32
        for row, site in enumerate(group.sites):
            first, *rest = (p.detach().double() for p in site.parameters)
            exact = pairwise(site.scale * rest[0] @ first if rest else first)
            size = (first if not rest else rest[0] @ first).square().sum().item()
            torch.testing.assert_close(found[row].double(), exact, rtol=1e-4, atol=1e-6 * size)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_far_particles_feel_nothing_and_equal_ones_are_equal(name):
    d2 = torch.tensor([[0.0, 0.0, 3e38], [0.0, 0.0, 3e38], [3e38, 3e38, 0.0]])
    k, slope = KERNELS[name](d2, torch.tensor(1.0))
    assert k[0, 1] == 1
    assert k[0, 2] < 1e-18
    assert bool(torch.isfinite(slope).all())
