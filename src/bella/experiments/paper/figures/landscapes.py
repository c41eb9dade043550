"""Figure 1: the error over the plane through three particles, on training and on shifted data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bella.console import progress_bar
from bella.errors import BellaError
from bella.evaluation.evaluate import collect
from bella.evaluation.landscape import (
    Landscape,
    landscape,
    plane_through,
    points_of,
    steps_over,
)
from bella.experiments.bench import Bench
from bella.experiments.paper.figures.common import finding, scored_shifts
from bella.experiments.paper.item import Compared, Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value
from bella.posteriors.point import Point
from bella.report.pictures import new_figure

POINTS = 3
MEAN = "mean of the weights"
SIGNS = {**{f"particle {i + 1}": f"{i + 1}" for i in range(POINTS)}, MEAN: "m"}
"""Where they lie on the map."""
LEVELS = 12


def make(setup: Setup, *, columns: int = 13, margin: float = 0.4, part: str = "") -> Product:
    """The error at every point of a grid on the plane."""
    task = setup.task
    shift = part or next(iter(scored_shifts(task).values()), "test")
    if shift not in task.split(0):
        raise BellaError(f"part={part!r}: choose {', '.join(task.split(0))}.")
    compared = setup.compare()
    name, title = next(iter(compared.titles.items()))
    posterior = compared.posterior(name)
    if posterior.particles < POINTS:
        raise BellaError(
            f"{title} has {posterior.particles} particle(s), and a plane goes through three: "
            "choose another row."
        )
    points = points_of(posterior, range(POINTS))
    plane = plane_through(points)
    x, y = steps_over(plane.corners, columns, margin)
    parts = dict.fromkeys(("train", "test", shift))
    with progress_bar(setup.progress) as bar:
        bench = Bench(task, compared.folder, {}, bar, setup.device)
        loaders = {one: bench.loader(*task.split(0)[one]) for one in parts}
        entrance = bench.entrance

        def score(network: nn.Module) -> dict[str, dict[str, float]]:
            point = Point(network, shared_prefix=entrance)
            said = {one: collect(point, loader) for one, loader in loaders.items()}
            return {
                one: {"error": error(predictive.predictions, labels), "nll": predictive.nll(labels)}
                for one, (predictive, labels) in said.items()
            }

        network = posterior.particle(0)
        found = landscape(network, plane, x, y, score, progress=bar)
        mean = {k: torch.stack([point[k] for point in points]).mean(0) for k in plane.origin}
        at = {f"particle {i + 1}": tuple(plane.corners[i].tolist()) for i in range(POINTS)}
        at[MEAN] = plane.shadow(mean)[:2]
        alone = {
            who: landscape(
                network, plane, torch.tensor([where[0]]), torch.tensor([where[1]]), score
            ).figures
            for who, where in at.items()
        }
        together = {one: of_three(compared, name, loader, bench) for one, loader in loaders.items()}
    shown = {
        "train": "training data",
        shift: f"shifted data: {shift}" if shift != "test" else "test data",
    }
    figure = drawn(found, at, shown)
    errors: dict[str, dict[str, float]] = {
        who: {one: float(of[one]["error"][0, 0]) for one in parts} for who, of in alone.items()
    } | {"all three answer together": together}
    sheet = Sheet(
        (Column("who"), *(Column(f"error on {one}", "%", "{:.1f}") for one in parts)),
        [[who, *(100 * own[one] for one in parts)] for who, own in errors.items()],
    )
    return Product(
        title=f"Figure 1: the error through three particles, {task.title}",
        shows=(
            f"Share of wrong answers over the plane through three particles of {title}, in the "
            "space of all merged weights: on the training data, and on data of another kind. Both "
            "axes are lengths in the units of the weights; 1, 2 and 3 are the particles, m is the "
            "mean of their weights. Where the two valleys lie apart, the "
            "weights that fit the training data are not those that fit the others."
        ),
        sheet=sheet,
        comparable=(
            "The paper prints a picture and no numbers: CLIP ViT-B/32 on CAMELYON17's training and "
            "test hospitals."
        ),
        pictures=[Picture("", alt_of(errors, shift), figure)],
        notes=[better_together(errors, shift)],
        more={"grid": grid_of(found)},
    )


def error(predictions: Tensor, labels: Tensor) -> float:
    """Share of wrong answers."""
    return float((predictions != labels).double().mean())


def of_three(compared: Compared, name: str, loader: Any, bench: Bench) -> float:
    """The error of the three particles' common answer."""
    posterior = compared.posterior(name)
    with posterior.subset(range(POINTS)):
        predictive, labels = collect(posterior, loader, average=compared.average)
    return error(predictive.predictions, labels)


def drawn(found: Landscape, at: Mapping[str, tuple[float, ...]], shown: Mapping[str, str]) -> Any:
    """A matplotlib figure: for each part a map of the error with the particles on it."""
    figure, axes = new_figure(5.4 * len(shown), 4.6, 1, len(shown))
    for axis, (part, title) in zip(axes[0], shown.items(), strict=True):
        values = 100 * found.figures[part]["error"]
        filled = axis.contourf(found.x, found.y, values, levels=LEVELS, cmap="viridis_r")
        axis.contour(found.x, found.y, values, levels=LEVELS, colors="white", linewidths=0.4)
        bar = figure.colorbar(filled, ax=axis, shrink=0.85)
        bar.set_label("wrong answers (%)")
        bar.outline.set_visible(False)
        for who, (across, up) in at.items():
            ring = {"facecolor": "white", "edgecolor": "black", "boxstyle": "circle,pad=0.25"}
            axis.text(across, up, SIGNS[who], ha="center", va="center", fontsize=9, bbox=ring)
        axis.set(
            xlabel="distance across, ‖Δθ‖ (units of the weights)",
            ylabel="distance up, ‖Δθ‖ (units of the weights)",
            aspect="equal",
        )
        axis.set_title(title, fontsize=10, loc="left")
    return figure


def grid_of(found: Landscape) -> Sheet:
    """Every point of the grid."""
    names = [(part, figure) for part, own in found.figures.items() for figure in own]
    rows: list[list[Value]] = [
        [
            x,
            y,
            *(float(found.figures[part][figure][row, column]) for part, figure in names),
        ]
        for row, y in enumerate(found.y.tolist())
        for column, x in enumerate(found.x.tolist())
    ]
    units = {"error": "share", "nll": "nats"}
    columns = [
        Column("across", "units of the weights", "{:.4f}"),
        Column("up", "units of the weights", "{:.4f}"),
        *(Column(f"{figure} on {part}", units[figure], "{:.4f}") for part, figure in names),
    ]
    return Sheet(columns, rows)


def alt_of(errors: Mapping[str, Mapping[str, float]], shift: str) -> str:
    """The picture in a sentence."""
    said = "; ".join(
        f"{who} {own['train']:.1%} and {own[shift]:.1%}" for who, own in errors.items()
    )
    return f"Maps of the error over the plane. Errors on the training data and on {shift}: {said}."


def better_together(errors: Mapping[str, Mapping[str, float]], shift: str) -> str:
    """Whether the common answer is better on shifted data than single particles are."""
    single = [own[shift] for who, own in errors.items() if who.startswith("particle")]
    ours = errors["all three answer together"][shift]
    mean = sum(single) / len(single)
    return finding(
        "a single particle does not generalize well to the shifted data, and averaging over "
        "several does better",
        f"the three particles are wrong on {', '.join(f'{e:.1%}' for e in single)} of {shift} "
        f"(mean {mean:.1%}), and together on {ours:.1%}",
        ours < mean,
    )


ITEM = Item(
    make=make,
    title="the error landscape through three particles, on training and shifted data",
    methods=("svgd-bella",),
    data=("elpv",),
    train=200,
    others=200,
    cost="2 minutes",
)
