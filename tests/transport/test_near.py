"""Particles that lie close together, and particles that are one point."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from helpers import batch, mlp, pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bella
from bella.transport import TRANSPORTS, by_name, gram
from bella.transport.kernels import KERNELS
from bella.transport.spread import Spread, stuck

N = 4
ABOVE = torch.triu_indices(N, N, 1)


def wide_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 3))


def near(kind: str, eps: float) -> bella.Posterior:
    """Particles in float32 that are apart by a share of their size."""
    if kind == "full":
        posterior = bella.full(wide_net(), N)
        parameters = list(posterior.stacked_parameters().values())
    else:
        posterior = bella.low_rank(wide_net(), N, 3, ("0", "2"))
        parameters = list(posterior.stacked_parameters().values())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p[:1].shape, generator=generator).expand_as(p))
            p.add_(eps * torch.randn(p.shape, generator=generator))
    return posterior


def exact_distances(site) -> torch.Tensor:
    """Square distances from dense weights in float64."""
    first, *rest = (p.detach().double() for p in site.parameters)
    return pairwise(site.scale * rest[0] @ first if rest else first)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["full", "low_rank"]), st.floats(-4, 0))
def test_distances_are_right_however_near(kind, exponent):
    posterior = near(kind, 10**exponent)
    move = bella.transport.repulsive(posterior, data_size=1)
    for group in move.groups:
        found = group.square_distances()
        for row, site in enumerate(group.sites):
            exact = exact_distances(site)[ABOVE[0], ABOVE[1]]
            torch.testing.assert_close(
                found[row][ABOVE[0], ABOVE[1]].double(), exact, rtol=1e-4, atol=0
            )


@pytest.mark.parametrize("turn", [1, 30])
def test_near_particles_in_other_gauges_are_near(turn):
    """(B G, G⁻¹ A) is the same network: what is near in Δ may be far in the factors."""
    posterior = near("low_rank", 1e-3)
    torch.manual_seed(3)
    for site in posterior.sites():
        G = torch.eye(3) + turn * 0.3 * torch.randn(N, 3, 3)
        with torch.no_grad():
            site.A.copy_(torch.linalg.solve(G, site.A))
            site.B.copy_(site.B @ G)
    move = bella.transport.repulsive(posterior, data_size=1)
    for group in move.groups:
        found = group.square_distances()
        for row, site in enumerate(group.sites):
            torch.testing.assert_close(
                found[row].double(), exact_distances(site), rtol=1e-4, atol=1e-12
            )


def test_the_logged_distance_of_near_copies_is_right():
    posterior = near("full", 1e-4)
    move = bella.transport.repulsive(posterior, data_size=1)
    d2 = sum(exact_distances(site) for site in posterior.sites())
    expected = (d2.sum() / (N * (N - 1))).sqrt().item()
    assert move.distance() == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------ one point


def copies(kind: str) -> bella.Posterior:
    """Whole copies, or heads alone, that start as one point."""
    network = mlp(dtype=torch.float32)
    if kind == "full":
        return bella.full(network, N)
    return bella.low_rank(network, N, 2, (), modules_to_save=("2",))


def trained(posterior: bella.Posterior, move, optimizer, steps: int) -> float:
    """Steps on one batch; the mean loss of a particle afterwards."""
    x, y = batch(32)
    for _ in range(steps):
        optimizer.zero_grad()
        bella.nll(posterior(x.float()), y).backward()
        move.step()
        optimizer.step()
    return bella.nll(posterior(x.float()), y).item() / posterior.particles


@pytest.mark.filterwarnings("ignore:.*are one point")
@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("name", ["repulsive", "svgd", "function"])
@pytest.mark.parametrize("kind", ["full", "heads"])
def test_copies_on_one_point_get_no_force_larger_than_their_gradient(kind, name, kernel):
    posterior = copies(kind)
    move = by_name(name, posterior, data_size=1000, kernel=kernel)
    x, y = batch()
    bella.nll(posterior(x.float()), y).backward()
    own = {key: p.grad.clone() for key, p in posterior.stacked_parameters().items()}
    move.step()
    for key, p in posterior.stacked_parameters().items():
        added = (p.grad - own[key]).flatten(1).norm(dim=1)
        size = own[key].flatten(1).norm(dim=1)
        assert (added <= 3 * size).all()
        assert (added >= 0.1 * size).all()


@cache
def a_hundred_steps(kind: str, name: str, maker: type[torch.optim.Optimizer]):
    """The loss of copies that a transport trained, the transport, and what was said."""
    posterior = copies(kind)
    move = by_name(name, posterior, data_size=1000)
    rate = 1e-2 if maker is torch.optim.AdamW else 0.5
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss = trained(posterior, move, maker(posterior.parameters(), lr=rate), 100)
    return loss, move, [str(w.message) for w in said]


@pytest.mark.parametrize("kind", ["full", "heads"])
@pytest.mark.parametrize("name", ["repulsive", "svgd", "function"])
@pytest.mark.parametrize("maker", [torch.optim.AdamW, torch.optim.SGD])
def test_copies_that_start_alike_part_and_learn(kind, name, maker):
    alone, _, _ = a_hundred_steps(kind, "ensemble", maker)
    loss, move, said = a_hundred_steps(kind, name, maker)
    (told,) = [words for words in said if "one point" in words]
    assert "4 of 4 particles" in told
    assert move.log["spread_steps"] == 1
    assert move.distance() > 1e-2
    assert loss < alone + 0.1


def test_the_spread_is_the_same_in_every_run():
    ends = []
    for _ in range(2):
        posterior = copies("full")
        move = bella.transport.repulsive(posterior, data_size=1000)
        torch.rand(3)  # the caller's random numbers have no part in it
        with pytest.warns(UserWarning, match="one point"):
            trained(posterior, move, torch.optim.SGD(posterior.parameters(), lr=0.1), 3)
        ends.append([p.detach().clone() for p in posterior.parameters()])
    for one, two in zip(*ends, strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:.*are one point")
@pytest.mark.parametrize("name", ["repulsive", "svgd", "function"])
def test_what_goes_on_knows_that_it_was_spread(name):
    move = by_name(name, copies("full"), data_size=8)
    trained(move.posterior, move, torch.optim.SGD(move.posterior.parameters(), 0.1), 1)
    again = by_name(name, move.posterior, data_size=8)
    again.load_state_dict(move.state_dict())
    trained(again.posterior, again, torch.optim.SGD(again.posterior.parameters(), 0.1), 1)
    assert again.log["spread_steps"] == move.log["spread_steps"] == 1
    assert again.spread.parted


def stuck_after_backward(posterior: bella.Posterior, x: torch.Tensor) -> torch.Tensor:
    posterior.zero_grad()
    bella.nll(posterior(x), batch()[1]).backward()
    return stuck(bella.transport.ensemble(posterior, data_size=1).groups)


def test_only_what_would_stay_one_point_is_stuck():
    x = batch()[0].float()
    assert stuck_after_backward(copies("full"), x).all()
    low_rank = bella.low_rank(mlp(dtype=torch.float32), N, 2, ("0", "2"))
    assert not stuck_after_backward(low_rank, x).any()  # B = 0, but each A is its own
    posterior = copies("full")
    with torch.no_grad():
        for p in posterior.parameters():
            p[2] += 0.01
    assert stuck_after_backward(posterior, x).tolist() == [True, True, False, True]
    dropout = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3))
    assert not stuck_after_backward(bella.full(dropout, N).train(), x).any()
    with torch.no_grad():
        for layer in low_rank.layers().values():
            layer.A.copy_(layer.A[:1].expand_as(layer.A))
    assert stuck_after_backward(low_rank, x).all()


def test_without_a_gradient_or_a_coupling_nothing_is_spread():
    posterior = copies("full")
    spread = Spread(bella.transport.ensemble(posterior, data_size=1).groups)
    for p in posterior.parameters():
        p.grad = torch.zeros_like(p)
    spread.part()
    assert spread.steps == 0
    assert not any(p.grad.any() for p in posterior.parameters())
    for name in TRANSPORTS:
        move = by_name(name, copies("full"), data_size=10, temperature=0.0)
        before = trained(move.posterior, move, torch.optim.SGD(move.posterior.parameters(), 0.1), 2)
        assert before < 2
        assert move.distance() == 0


def test_a_pair_on_one_point_in_one_layer_feels_nothing_there():
    """Rounding times a kernel that is steep at 0 is no repulsion."""
    posterior = bella.full(wide_net(), N, start_std=0.1)
    first = next(iter(posterior.sites()))
    with torch.no_grad():
        first.value.copy_(first.value[:1].expand_as(first.value))
        first.value[1] *= 1 + 1e-7  # a unit of rounding
    move = bella.transport.repulsive(posterior, data_size=1)
    for p in posterior.parameters():
        p.grad = torch.zeros_like(p)
    move.step()
    assert not first.value.grad.any()
    assert any(site.value.grad.any() for site in posterior.sites())


def test_equal_copies_are_exactly_equal_from_the_first():
    value = torch.randn(2, 1, 1000).expand(2, 5, 1000)
    assert not gram.from_first(value).any()
