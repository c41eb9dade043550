"""Pictures of a comparison. Each is one function from figures to a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name; give one such mapping to pictures that show the same methods."""
    return dict(zip(names, cycle(COLOURS), strict=False))


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    matplotlib = require("matplotlib", "fit")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", "fit")
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    plt = require("matplotlib.pyplot", "fit")
    figure.tight_layout()
    # Without the date and version that matplotlib would note, one seed gives one file.
    write_whole(
        path, lambda p: figure.savefig(p, format="png", dpi=130, metadata={"Software": None})
    )
    plt.close(figure)
    return path


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
    figure, axes = _figure(2.1 * count, 5.4, 2, count)
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
    return _save(figure, path)


def densities(
    path: Path, groups: Mapping[str, Predictive], title: str, examples: str = "images"
) -> Path:
    """Distributions of entropy and mutual information, one line a group of examples.

    Drawn as the share of examples above each value, which needs no bandwidth.
    """
    figure, axes = _figure(10, 3.8, 1, 2)
    colours = colours_of(groups)
    for axis, (name, words) in zip(
        axes[0],
        (("entropy", "entropy (nats)"), ("mutual_information", "mutual information (nats)")),
        strict=True,
    ):
        for group, predictive in groups.items():
            values = getattr(predictive, name).sort().values
            share = 1 - torch.arange(len(values)) / len(values)
            axis.plot(values, share, label=f"{group} ({len(values)})", color=colours[group])
        axis.set_xlabel(words)
        axis.set_ylabel(f"share of {examples} above")
        if name == "mutual_information":
            axis.set_xscale("symlog", linthresh=1e-3)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return _save(figure, path)


def reliability(
    path: Path,
    methods: Mapping[str, Predictive],
    labels: Tensor,
    colours: Mapping[str, str] | None = None,
) -> Path:
    """Accuracy against confidence of each method's predictive."""
    colours = colours or colours_of(methods)
    figure, axes = _figure(5, 4.6)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for name, predictive in methods.items():
        confidence, accuracy, _ = metrics.reliability(predictive.probs, labels, bins=10)
        error = metrics.ece(predictive.probs, labels)
        label = f"{name} (ECE {error:.3f})"
        axis.plot(confidence, accuracy, "o-", label=label, color=colours[name])
    lowest = 1 / next(iter(methods.values())).probs.shape[1]
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(lowest, 1.01), ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def distances(
    path: Path,
    traces: Mapping[str, Sequence[Mapping[str, float]]],
    colours: Mapping[str, str] | None = None,
) -> Path:
    """Distance of two particles over training, one line a method."""
    colours = colours or colours_of(traces)
    figure, axes = _figure(6, 3.8)
    axis = axes[0, 0]
    for name, trace in traces.items():
        steps, values = ([p[key] for p in trace] for key in ("step", "distance"))
        axis.plot(steps, values, label=name, color=colours[name])
    axis.set(xlabel="step", ylabel="distance of two particles, ‖Δᵢ - Δⱼ‖")
    axis.legend(frameon=False)
    return _save(figure, path)


def curves(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Training loss and validation NLL over the epochs of a run."""
    figure, axes = _figure(5.5, 3.6)
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
    return _save(figure, path)
