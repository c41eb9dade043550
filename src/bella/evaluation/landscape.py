"""The error over a plane through three particles, in the space of all weights.

Three points of parameter space span a plane, θ(x, y) = θ_1 + x u + y v, with

    u = (θ_2 - θ_1) / ‖θ_2 - θ_1‖        v = (d - ⟨d, u⟩ u) / ‖d - ⟨d, u⟩ u‖,  d = θ_3 - θ_1

so that x and y are lengths in the units of the weights, and what is far apart in the picture is far
apart in parameter space. A particle is a point as a plain network is: of low-rank particles the
merged weights W0 + s B_i A_i, and never their factors, which have no say in where they lie.

Source:
    Garipov et al. 2018, Loss surfaces, mode connectivity, and fast ensembling of DNNs (the plane);
    Doan et al., Bella, Figure 1 (through three particles, on training and on shifted test data).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from rich.progress import Progress
from torch import Tensor, nn

from bella.errors import BellaError
from bella.posterior import Posterior

Weights = Mapping[str, Tensor]
"""Parameters of a plain network, by name."""

FLAT = 1e-6
"""Share of a side's length below which three points lie on one line."""


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane in parameter space.

    Attributes:
        origin: the first point: those weights in which the three differ.
        across: the unit vector u, in the same form.
        up: the unit vector v.
        corners: the three points in coordinates of the plane.
    """

    origin: Weights
    across: Weights
    up: Weights
    corners: Float[Tensor, "3 2"]

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """The weights at a point of the plane."""
        return {
            name: value + (x * self.across[name] + y * self.up[name]).to(value.dtype)
            for name, value in self.origin.items()
        }

    def shadow(self, point: Weights) -> tuple[float, float, float]:
        """Where a point of parameter space falls on the plane, and how far from it it lies.

        Args:
            point: at least the weights that differ between the corners; what else it has the
                corners share with it.

        Returns:
            x, y and the distance.
        """
        away = {name: point[name].double() - value.double() for name, value in self.origin.items()}
        x, y = _inner(away, self.across), _inner(away, self.up)
        return x, y, max(0.0, _inner(away, away) - x * x - y * y) ** 0.5


@dataclass(frozen=True, eq=False)
class Landscape:
    """Figures over a plane.

    Attributes:
        plane: where they were taken.
        x: positions across, (columns,).
        y: positions up, (rows,).
        figures: by data and name, such as ``figures["train"]["error"]``, each (rows, columns).
    """

    plane: Plane
    x: Float[Tensor, " columns"]
    y: Float[Tensor, " rows"]
    figures: Mapping[str, Mapping[str, Float[Tensor, "rows columns"]]]


def plane_through(points: Sequence[Weights]) -> Plane:
    """The plane through three points of parameter space.

    Args:
        points: three, with the same names and shapes.

    Raises:
        BellaError: there are not three, their names differ, or they lie on one line.
    """
    if len(points) != 3 or any(set(point) != set(points[0]) for point in points):
        raise BellaError("A plane goes through three points with the same weights: give three.")
    first, second, third = points
    moving = [
        name
        for name, value in first.items()
        if not (torch.equal(value, second[name]) and torch.equal(value, third[name]))
    ]
    one, other = (
        {name: point[name].double() - first[name].double() for name in moving}
        for point in (second, third)
    )
    width = _inner(one, one) ** 0.5
    if width == 0:
        raise BellaError(_ONE_LINE)
    across = {name: value / width for name, value in one.items()}
    along = _inner(other, across)
    rest = {name: value - along * across[name] for name, value in other.items()}
    height = _inner(rest, rest) ** 0.5
    if height <= FLAT * _inner(other, other) ** 0.5 or height == 0:
        raise BellaError(_ONE_LINE)
    return Plane(
        {name: first[name] for name in moving},
        across,
        {name: value / height for name, value in rest.items()},
        torch.tensor([[0.0, 0.0], [width, 0.0], [along, height]], dtype=torch.float64),
    )


_ONE_LINE = (
    "The three points lie on one line, and no one plane goes through them: choose particles that "
    "differ."
)


def _inner(a: Weights, b: Weights) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def points_of(posterior: Posterior, particles: Sequence[int]) -> list[dict[str, Tensor]]:
    """Particles as points of parameter space: their weights as plain networks.

    Raises:
        BellaError: there is no such particle, or particles differ in buffers: weights between them
            have no statistics of their own.
    """
    plain = [posterior.particle(particle) for particle in particles]
    for name, first in plain[0].named_buffers():
        if any(not torch.equal(first, one.get_buffer(name)) for one in plain[1:]):
            raise BellaError(
                f"The particles differ in the buffer {name!r}, which the weights between them have "
                "no value of: a landscape needs particles that share their statistics."
            )
    return [{name: p.detach() for name, p in one.named_parameters()} for one in plain]


def steps_over(
    corners: Float[Tensor, "3 2"], columns: int, margin: float = 0.4
) -> tuple[Tensor, Tensor]:
    """A grid of square cells that holds the three points, with a margin around them.

    Args:
        corners: of the plane.
        columns: positions across, at least two.
        margin: on each side, as a share of the longer side.

    Returns:
        Positions across, (columns,), and up, (rows,).

    Raises:
        BellaError: fewer than two columns, or a margin below 0.
    """
    if columns < 2 or not margin >= 0:
        raise BellaError(f"columns={columns}, margin={margin}: give at least 2, and at least 0.")
    low, high = corners.min(0).values, corners.max(0).values
    border = margin * float((high - low).max())
    low, high = low - border, high + border
    x = torch.linspace(float(low[0]), float(high[0]), columns, dtype=torch.float64)
    cell = float(x[1] - x[0])
    rows = max(2, round(float(high[1] - low[1]) / cell) + 1)
    middle = float(low[1] + high[1]) / 2
    y = middle + cell * (torch.arange(rows, dtype=torch.float64) - (rows - 1) / 2)
    return x, y


def landscape(
    network: nn.Module,
    plane: Plane,
    x: Float[Tensor, " columns"],
    y: Float[Tensor, " rows"],
    score: Callable[[nn.Module], Mapping[str, Mapping[str, float]]],
    *,
    progress: Progress | None = None,
) -> Landscape:
    """Ask one network after another, at every point of a grid.

    Args:
        network: a plain network whose other weights the three points share, such as
            ``posterior.particle(0)``; left as it is.
        plane: see `plane_through`.
        x: positions across.
        y: positions up.
        score: from a network to its figures on each kind of data, by name.
        progress: a display to show a bar in.

    Raises:
        BellaError: the network has not the weights of the plane.
    """
    network = copy.deepcopy(network).eval()
    own = dict(network.named_parameters())
    if missing := [name for name in plane.origin if name not in own]:
        raise BellaError(f"The network has no parameter {missing[0]!r}, which the plane moves.")
    task = progress.add_task("landscape", total=len(x) * len(y)) if progress else None
    found: dict[str, dict[str, Tensor]] = {}
    for row, column, weights in _points(plane, x, y):
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)
        for data, figures in score(network).items():
            for name, value in figures.items():
                grid = found.setdefault(data, {}).setdefault(
                    name, torch.full((len(y), len(x)), torch.nan, dtype=torch.float64)
                )
                grid[row, column] = value
        if progress and task is not None:
            progress.advance(task)
    if progress and task is not None:
        progress.remove_task(task)
    return Landscape(plane, x, y, found)


def _points(plane: Plane, x: Tensor, y: Tensor) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    for row, up in enumerate(y.tolist()):
        for column, across in enumerate(x.tolist()):
            yield row, column, plane.at(across, up)
