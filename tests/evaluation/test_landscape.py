"""The landscape of a known quadratic, and where particles lie on their plane."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bella
from bella.errors import BellaError
from bella.evaluation.landscape import landscape, plane_through, points_of, steps_over


def points(seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "weight": torch.randn(2, 3, generator=generator, dtype=torch.float64),
            "bias": torch.randn(2, generator=generator, dtype=torch.float64),
        }
        for _ in range(count)
    ]


def flat(weights):
    return torch.cat([weights[name].flatten() for name in ("weight", "bias")])


def test_coordinates_are_lengths_in_parameter_space():
    three = points()
    plane = plane_through(three)
    for i in range(3):
        assert torch.allclose(flat(plane.at(*plane.corners[i].tolist())), flat(three[i]))
        for j in range(i):
            known = (flat(three[i]) - flat(three[j])).norm()
            assert torch.allclose((plane.corners[i] - plane.corners[j]).norm(), known)


def test_a_shadow_is_the_nearest_point_of_the_plane():
    *three, other = points(count=4)
    plane = plane_through(three)
    x, y, distance = plane.shadow(other)
    away = flat(other) - flat(plane.at(x, y))
    assert away.norm().item() == pytest.approx(distance)
    sides = torch.stack([flat(three[1]) - flat(three[0]), flat(three[2]) - flat(three[0])])
    assert (sides @ away).abs().max() < 1e-12
    assert plane.shadow(three[2]) == pytest.approx((*plane.corners[2].tolist(), 0.0), abs=1e-7)


def test_the_landscape_of_a_quadratic_is_the_quadratic():
    """½ (θ - θ*)ᵀ H (θ - θ*) over the plane, written out in the plane's own coordinates."""
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    H, best = root @ root.T, torch.randn(8, generator=generator, dtype=torch.float64)
    network = nn.Linear(3, 2).double()
    before = [p.clone() for p in network.parameters()]

    def score(asked):
        away = flat(dict(asked.named_parameters())).detach() - best
        return {"all": {"loss": float(away @ H @ away / 2), "size": float(away.norm())}}

    plane = plane_through(points())
    x, y = steps_over(plane.corners, 5)
    found = landscape(network, plane, x, y, score)
    start, u, v = flat(plane.origin) - best, flat(plane.across), flat(plane.up)
    X, Y = x[None, :], y[:, None]
    known = (
        start @ H @ start / 2
        + X * (u @ H @ start)
        + Y * (v @ H @ start)
        + (X * X * (u @ H @ u) + 2 * X * Y * (u @ H @ v) + Y * Y * (v @ H @ v)) / 2
    )
    assert torch.allclose(found.figures["all"]["loss"], known, rtol=1e-12)
    assert found.figures["all"]["size"].shape == (len(y), len(x))
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_the_grid_has_square_cells_and_holds_the_points():
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    x, y = steps_over(corners, 13, margin=0.25)
    assert torch.allclose(x, torch.linspace(-1, 5, 13, dtype=torch.float64))
    assert torch.allclose(y.diff(), x.diff()[0].expand(len(y) - 1))
    assert torch.allclose(y[[0, -1]], torch.tensor([-1.0, 3.0], dtype=torch.float64))
    with pytest.raises(BellaError, match="at least 2"):
        steps_over(corners, 1)


def particles(batch_norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if batch_norm else []), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double()


def test_particles_are_points_as_plain_networks_are():
    posterior = bella.low_rank(
        particles(), 3, 1, target_modules=("0",), b_std=0.5, modules_to_save=("1",), seed=1
    ).eval()
    with torch.no_grad():
        for head in (p for name, p in posterior.stacked_parameters().items() if name[0] == "1"):
            head += torch.randn_like(head)
    x = torch.randn(5, 3, dtype=torch.float64)
    said = posterior(x)
    plane = plane_through(points_of(posterior, range(3)))
    assert set(plane.origin) == {"0.weight", "1.weight", "1.bias"}  # 0.bias is the base's
    asked = []
    landscape(
        posterior.particle(0),
        plane,
        plane.corners[:, 0],
        plane.corners[[0, 2], 1],
        lambda network: asked.append(network(x)) or {},
    )
    assert torch.allclose(asked[0], said[0])
    assert torch.allclose(asked[1], said[1])
    assert torch.allclose(asked[5], said[2])


def test_particles_with_statistics_of_their_own_are_refused():
    posterior = bella.full(particles(batch_norm=True), 3, reset=(".*",), seed=0)
    for _ in range(2):
        posterior.train()(torch.randn(8, 3, dtype=torch.float64))
    with pytest.raises(BellaError, match="running_mean"):
        points_of(posterior, range(3))


def test_three_points_on_a_line_are_refused():
    a, b, _ = points()
    middle = {name: (a[name] + b[name]) / 2 for name in a}
    for three in ([a, b, middle], [a, a, b], [a, b]):
        with pytest.raises(BellaError):
            plane_through(three)
