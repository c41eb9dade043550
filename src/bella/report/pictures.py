"""Pictures of a comparison. Each is one function from figures to a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bella import metrics
from bella.errors import require
from bella.files import write_whole
from bella.prediction.predictive import Predictive

COLOURS = ("#3b6ea5", "#d1495b", "#edae49", "#00798c", "#6a4c93", "#8d99ae")


DASHES = ("-", "--", ":", "-.")

Looks = Mapping[str, Mapping[str, str]]
"""How each name's line is drawn."""


def looks_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """A look of its own for each name: beyond as many as there are colours lines are dashed. Give
    one such mapping to pictures that show the same methods."""
    looks = cycle({"linestyle": dash, "color": colour} for dash in DASHES for colour in COLOURS)
    return dict(zip(names, looks, strict=False))


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes (rows, columns)."""
    matplotlib = require("matplotlib", "fit")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", "fit")
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, *paths: Path) -> Path:
    """Write a figure to each of ``paths``, in the format that its ending names; returns the first.

    Raises:
        BellaError: a path cannot be written.
    """
    matplotlib = require("matplotlib", "fit")
    plt = require("matplotlib.pyplot", "fit")
    figure.tight_layout()
    for path in paths:
        form = path.suffix.removeprefix(".")
        # Without the date and version that matplotlib would note, one seed gives one file.
        without = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
        with matplotlib.rc_context({"svg.hashsalt": "bella"}):
            write_whole(path, partial(figure.savefig, format=form, dpi=130, metadata=without))
    plt.close(figure)
    return paths[0]


def extremes(
    path: Path,
    images: Any,
    predictive: Predictive,
    labels: Sequence[str],
    classes: Sequence[str],
    count: int = 6,
) -> Path:
    """The most and the least certain images, with what was said and what is true."""
    order = predictive.entropy.argsort()
    count = min(count, len(order))
    rows = {"most certain": order[:count], "least certain": order.flip(0)[:count]}
    figure, axes = new_figure(2.1 * count, 5.4, 2, count)
    for row, (title, positions) in enumerate(rows.items()):
        for column, position in enumerate(positions.tolist()):
            axis = axes[row, column]
            axis.imshow(images.image(position), cmap="gray")
            axis.axis("off")
            said = classes[int(predictive.predictions[position])]
            confidence = float(predictive.confidence[position])
            axis.set_title(
                f"says {said} {confidence:.0%}\nlabel: {labels[position]}", fontsize=8, loc="left"
            )
        axes[row, 0].text(
            -0.08,
            0.5,
            title,
            transform=axes[row, 0].transAxes,
            rotation=90,
            va="center",
            ha="right",
        )
    return save_figure(figure, path)


def densities(
    path: Path, groups: Mapping[str, Predictive], title: str, examples: str = "images"
) -> Path:
    """Distributions of entropy and mutual information, one line a group of examples.

    Drawn as the share of examples above each value, which needs no bandwidth.
    """
    figure, axes = new_figure(10, 3.8, 1, 2)
    looks = looks_of(groups)
    for axis, (name, words) in zip(
        axes[0],
        (("entropy", "entropy (nats)"), ("mutual_information", "mutual information (nats)")),
        strict=True,
    ):
        for group, predictive in groups.items():
            values = getattr(predictive, name).sort().values
            share = 1 - torch.arange(len(values)) / len(values)
            axis.plot(values, share, label=f"{group} ({len(values)})", **looks[group])
        axis.set_xlabel(words)
        axis.set_ylabel(f"share of {examples} above")
        if name == "mutual_information":
            axis.set_xscale("symlog", linthresh=1e-3)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, wrap=True)
    return save_figure(figure, path)


def reliability(
    path: Path,
    methods: Mapping[str, Predictive],
    labels: Tensor,
    looks: Looks | None = None,
) -> Path:
    """Accuracy against confidence of each method's predictive."""
    looks = looks or looks_of(methods)
    figure, axes = new_figure(5, 4.6)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for name, predictive in methods.items():
        confidence, accuracy, _ = metrics.reliability(predictive.probs, labels, bins=10)
        error = metrics.ece(predictive.probs, labels)
        label = f"{name} (ECE {error:.3f})"
        axis.plot(confidence, accuracy, marker="o", label=label, **looks[name])
    lowest = 1 / next(iter(methods.values())).probs.shape[1]
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(lowest, 1.01), ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def distances(
    path: Path,
    traces: Mapping[str, Sequence[Mapping[str, float]]],
    looks: Looks | None = None,
) -> Path:
    """Distance of two particles over training, one line a method."""
    looks = looks or looks_of(traces)
    figure, axes = new_figure(6, 3.8)
    axis = axes[0, 0]
    for name, trace in traces.items():
        steps, values = ([p[key] for p in trace] for key in ("step", "distance"))
        axis.plot(steps, values, label=name, **looks[name])
    axis.set(xlabel="step", ylabel="distance of two particles, ‖Δᵢ - Δⱼ‖")
    axis.legend(frameon=False)
    return save_figure(figure, path)


def risk_coverage(path: Path, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Path:
    """Share of wrong answers among the surest ones, against how many are answered."""
    figure, axes = new_figure(5.5, 3.8)
    axis = axes[0, 0]
    looks = looks_of(lines)
    for name, (coverage, risk) in lines.items():
        axis.plot(coverage, risk, label=name, **looks[name])
    axis.set(xlabel="share answered, the surest first", ylabel="share of these wrong", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return save_figure(figure, path)


def under_shift(
    path: Path, lines: Mapping[str, Mapping[float, Mapping[str, float]]], strength: str
) -> Path:
    """Accuracy and mean entropy against the strength of a shift or an attack, a line a kind; beyond
    as many kinds as there are colours their mean stands out of all in grey.

    Args:
        path: of the picture.
        lines: by kind and strength, ``accuracy`` and ``entropy``; strength 0 is the clean data.
        strength: what it is, with its unit.
    """
    figure, axes = new_figure(10, 3.8, 1, 2)
    many = len(lines) > len(COLOURS)
    looks = {kind: {"color": "#c4c9d2"} for kind in lines} if many else looks_of(lines)
    for axis, figure_name, words in zip(
        axes[0],
        ("accuracy", "entropy"),
        ("accuracy", "mean entropy (nats)"),
        strict=True,
    ):
        for kind, line in lines.items():
            values = [row[figure_name] for row in line.values()]
            axis.plot(list(line), values, marker="o", markersize=3, label=kind, **looks[kind])
        if many:
            for line in axis.lines:
                line.set_label(None)
            places = list(next(iter(lines.values())))
            means = [
                sum(row[p][figure_name] for row in lines.values()) / len(lines) for p in places
            ]
            axis.plot(places, means, "o-", color=COLOURS[0], label=f"mean of {len(lines)} kinds")
        axis.set(xlabel=strength, ylabel=words)
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def curves(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Training loss and validation NLL over the epochs of a run."""
    figure, axes = new_figure(5.5, 3.6)
    axis = axes[0, 0]
    for (name, words), colour in zip(
        (("loss", "training NLL of a particle"), ("validation_nll", "validation NLL, predictive")),
        COLOURS,
        strict=False,
    ):
        points = [(row["epoch"], row[name]) for row in history if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", label=words, color=colour)
    axis.set(xlabel="epoch", ylabel="nats")
    axis.legend(frameon=False)
    return save_figure(figure, path)


def beside_reference(path: Path, problems: Mapping[str, Mapping[str, Any]]) -> Path:
    """Every method beside the sampled posterior: how far its predictive is, and how wide.

    Args:
        path: file to write.
        problems: by name their ``title`` and ``rows``, each with a ``title``, its
            ``total_variation`` and ``prediction_variance`` (over the sampler's).
    """
    everything = [row for found in problems.values() for row in found["rows"].values()]
    shown = {row["title"] for row in everything if "why_not" not in row}
    titles = [row for row in dict.fromkeys(row["title"] for row in everything) if row in shown]
    places = {title: len(titles) - number for number, title in enumerate(titles)}
    figure, axes = new_figure(11, 1.6 + 0.34 * len(titles), 1, 2)
    least = 1e-4  # a variance of 0 stands at the left end
    for colour, marker, found in zip(COLOURS, "os^DvP", problems.values(), strict=False):
        rows = [row for row in found["rows"].values() if "why_not" not in row]
        heights = [places[row["title"]] for row in rows]
        for axis, values in zip(
            axes[0],
            (
                [row["total_variation"] for row in rows],
                [max(row["prediction_variance"], least) for row in rows],
            ),
            strict=True,
        ):
            axis.plot(values, heights, marker, color=colour, label=found["title"], ms=6, alpha=0.85)
    left, right = axes[0]
    for axis in (left, right):
        axis.set_ylim(0.3, len(titles) + 0.7)
        axis.grid(axis="y", color="#e6e6e6", lw=0.8)
        axis.set_axisbelow(True)
    left.set_yticks(list(places.values()), list(places))
    right.set_yticks(list(places.values()), [])
    left.set_xlim(left=0)
    left.set_xlabel("total variation from NUTS's predictive\n(0: the same)")
    right.set_xscale("log")
    right.set_xlim(left=least / 1.5)
    right.axvline(1, color="#555555", lw=1)
    right.set_xlabel("variance of predictions over NUTS's\n(1: the same; left end: none)")
    figure.legend(*left.get_legend_handles_labels(), loc="upper right", ncols=3, fontsize=8)
    left.set_title(" ")  # room for the legend
    return save_figure(figure, path)
