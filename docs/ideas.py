"""The pictures of the method pages: what each method does, done by bella itself.

    python docs/ideas.py [NAME ...]

Each is drawn on a problem that is small enough to be seen: a curve or two weights
(here), or the digits of scikit-learn (docs/ideas_digits.py). To add one, write a function that
returns a figure and what it shows in words, and put it in `IDEAS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ideas_digits
import torch
from drawing import BLUE, FAINT, INK, PARTICLES, PICTURES, RED, Drawn, panels, save
from torch import Tensor, nn

import bella
from bella.likelihood import Gaussian, Likelihood
from bella.transport import Transport, by_name


def descend(
    posterior: bella.Posterior,
    move: Transport,
    x: Tensor,
    y: Tensor,
    likelihood: str | Likelihood,
    steps: int = 600,
    rate: float = 5e-3,
) -> bella.Posterior:
    """Train particles on all data at once."""
    optimizer = torch.optim.Adam(posterior.parameters(), rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        bella.nll(posterior(x), y, likelihood=likelihood).backward()
        move.step()
        optimizer.step()
        decay.step()
    return posterior


# ------------------------------------------------------------ a curve

NOISE = 0.1
"""Standard deviation of the points around the curve."""

SCORED = Gaussian(variance=NOISE**2)


def points() -> tuple[Tensor, Tensor]:
    """On both sides of a gap, (points, 1) each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.linspace(-2.6, -0.9, 14), torch.linspace(0.9, 2.0, 10)])[:, None]
    return x, torch.sin(1.8 * x) + 0.35 * x + NOISE * torch.randn(len(x), 1, generator=generator)


def curve_network(learnt: bool = True) -> nn.Module:
    """A small network, which has learnt another curve from everywhere, or nothing."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
    )
    x = torch.linspace(-4, 4, 200)[:, None]
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(400 if learnt else 0):
        loss = (network(x) - torch.sin(1.2 * x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def low_rank_on_curve(particles: int, seed: int = 0, gain: float = 10.0) -> bella.Posterior:
    """Particles in both layers and the head of the network that learnt another curve."""
    where = {"target_modules": ("0", "2"), "rank_pattern": {"0": 1}, "modules_to_save": ("4",)}
    return bella.low_rank(
        curve_network(), particles, 4, **where, gain=gain, head_init="reset", seed=seed
    )


def on_curve(posterior: bella.Posterior, transport: str = "ensemble") -> bella.Posterior:
    """Particles that have seen the points, under a prior on their factors."""
    x, y = points()
    prior = {"prior": "factors", "prior_std": 1.0} if transport == "ensemble" else {}
    return descend(
        posterior, by_name(transport, posterior, data_size=len(x), **prior), x, y, SCORED
    )


PLACES = torch.linspace(-4, 4, 101)[:, None]
"""Where curves are drawn."""


def draw_curves(axis: Any, posterior: bella.Posterior) -> None:
    """A line for each particle, and the points."""
    with torch.no_grad():
        lines = posterior(PLACES)[..., 0]
    for line, colour in zip(lines, PARTICLES, strict=False):
        axis.plot(PLACES[:, 0], line, color=colour, linewidth=1.5)
    draw_points(axis)


def draw_points(axis: Any) -> None:
    """What was seen."""
    x, y = points()
    axis.plot(x[:, 0], y[:, 0], "o", color=INK, markersize=3.2, zorder=5)
    axis.set(xlim=(-4, 4), ylim=(-2.4, 2.4), xticks=[], yticks=[])


def low_rank() -> Drawn:
    """Particles begin as one network and part where nothing was seen."""
    figure, axes = panels(["One frozen network", "Five particles of it, trained"])
    network = curve_network()
    with torch.no_grad():
        base = network(PLACES)[:, 0]
    draw_points(axes[0])
    posterior = on_curve(low_rank_on_curve(5))
    draw_curves(axes[1], posterior)
    for axis in axes:
        axis.plot(PLACES[:, 0], base, "--", color=FAINT, linewidth=1.3, zorder=1)
    weights = sum(p.numel() for p in network.parameters())
    own = bella.cost(posterior)["trainable"] // 5
    axes[0].set_xlabel(f"{weights:,} weights, and what is to learn")
    axes[1].set_xlabel(f"each its own {own:,} numbers; dashed: the network")
    return figure, "A curve that misses the points; five that meet at them and part elsewhere."


def full() -> Drawn:
    """Copies that start as one stay one; copies of several starts do not."""
    figure, axes = panels(["Five copies of one network", "Five networks from five starts"])
    draw_curves(axes[0], on_curve(bella.full(curve_network(), 5)))
    draw_curves(axes[1], on_curve(bella.full(curve_network(learnt=False), 5, reset=(".*",))))
    axes[0].set_xlabel("five lines on one another: nothing parts them")
    axes[1].set_xlabel("each its own 2,497 numbers")
    return figure, "One curve through the points, and five that part where there are none."


def laplace() -> Drawn:
    """A Gaussian around one particle, and around each of five."""
    figure, axes = panels(["One particle, and a Gaussian around it", "One around each of five"])
    for axis, seeds in zip(axes, (range(1), range(5)), strict=True):
        for seed in seeds:
            one = on_curve(low_rank_on_curve(1, seed=seed))
            around = bella.laplace(
                one, [points()], likelihood="gaussian", variance=NOISE**2, prior_precision=1.0
            )
            said = bella.predict(around, PLACES, likelihood=SCORED, draws=5000)
            mean, deviation = said.mean, said.epistemic.sqrt()
            colour = PARTICLES[seed]
            sides = (mean - 2 * deviation, mean + 2 * deviation)
            axis.fill_between(PLACES[:, 0], *sides, color=colour, alpha=0.18, linewidth=0)
            axis.plot(PLACES[:, 0], mean, color=colour, linewidth=1.5)
        draw_points(axis)
    axes[0].set_xlabel("shaded: two standard deviations of its curve")
    axes[1].set_xlabel("shaded: of each one's own")
    return figure, "A curve with a band that is wide away from the points; five curves with bands."


# ------------------------------------------------------------ two weights


def regression() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y of y = x w + noise with w ~ N(0, 1), and mean and covariance of w after the data."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 2, generator=generator) @ torch.tensor([[0.7, 0.5], [0.0, 0.35]])
    y = x @ torch.tensor([[0.8], [-0.5]]) + torch.randn(20, 1, generator=generator)
    covariance = torch.linalg.inv(x.mT @ x + torch.eye(2))
    return x, y, (covariance @ x.mT @ y).squeeze(1), covariance


def moved(name: str, noisy: bool = False, steps: int = 800) -> list[Tensor]:
    """Where twenty particles of two weights are at each step, (particles, 2) each."""
    torch.manual_seed(0)
    x, y, _, _ = regression()
    network = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.zeros_(network[0].weight)  # so that the prior on the change is one on the weights
    posterior = bella.low_rank(network, 20, 1, target_modules=("0",), b_std=1.0)
    prior = {"prior": "delta", "prior_std": 1.0, "langevin": noisy}
    move = by_name(name, posterior, data_size=len(x), **prior)
    rate = 0.1 if noisy else 0.03
    kind = torch.optim.SGD if noisy else torch.optim.Adam
    optimizer = kind(posterior.parameters(), rate)
    way = []
    for step in range(steps):
        a, b = (p.detach() for p in posterior.stacked_parameters().values())
        way.append((b @ a)[:, 0])
        for group in optimizer.param_groups:
            group["lr"] = rate if noisy else rate * (1 - step / steps)
        optimizer.zero_grad()
        bella.nll(posterior(x), y, likelihood=Gaussian(variance=1.0)).backward()
        move.step(rate if noisy else None)
        optimizer.step()
    return way


SEEN = [0, 6, 12, 20, 30, 45, 70, 110, 200, 400, 799]
"""Steps at which a particle's way is drawn."""


def coupling() -> Drawn:
    """Twenty particles of two weights under four transports, over the posterior."""
    kinds = {
        "ensemble": ("ensemble", False),
        "repulsive": ("repulsive", False),
        "svgd": ("svgd", False),
        "ensemble, langevin": ("ensemble", True),
    }
    figure, axes = panels(list(kinds), width=9.6, height=2.9)
    _, _, mean, covariance = regression()
    root = torch.linalg.cholesky(covariance)
    angle = torch.linspace(0, 2 * torch.pi, 90)
    circle = torch.stack([angle.cos(), angle.sin()])
    for axis, (name, noisy) in zip(axes, kinds.values(), strict=True):
        for level, shade in ((2.45, 0.13), (1.67, 0.16), (0.8, 0.2)):
            ring = mean[:, None] + level * root @ circle
            axis.fill(ring[0], ring[1], color=FAINT, alpha=shade, linewidth=0)
        way = torch.stack(moved(name, noisy))
        for particle in () if noisy else range(20):
            axis.plot(*way[SEEN, particle].mT, color=BLUE, linewidth=0.6, alpha=0.4)
        axis.plot(*way[-1].mT, "o", color=RED, markersize=3.6)
        kept = float((way[-1].var(0) / covariance.diagonal()).mean())
        axis.set_xlabel(f"variance kept: {kept:.0%}")
        axis.set(xlim=(-1.0, 2.1), ylim=(-1.7, 1.6), xticks=[], yticks=[], aspect="equal")
        axis.spines[:].set_visible(False)
    return figure, "Particles on one point, spread within, and spread over the shaded posterior."


IDEAS: dict[str, Callable[[], Drawn]] = {
    "low-rank": low_rank,
    "coupling": coupling,
    "laplace": laplace,
    "full": full,
    **ideas_digits.IDEAS,
}
"""By the page that shows each."""


def main(names: list[str]) -> None:
    """Draw some, or all."""
    for name in names or IDEAS:
        figure, words = IDEAS[name]()
        print(save(figure, PICTURES / "ideas" / f"{name}.svg", words))


if __name__ == "__main__":
    main(sys.argv[1:])
