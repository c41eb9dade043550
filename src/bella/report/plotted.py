"""Charts as matplotlib draws them: for files that are printed, or shown on a page of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from bella.errors import require
from bella.report.charts import Axis, Chart, Line
from bella.report.drawn import COLOURS, FAINT
from bella.report.pictures import new_figure

MARKS = "osD^PXp*"
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Panel:
    """What of a `Chart` is drawn, where nothing else is said of it."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]


def plotted(charts: Sequence[Chart | Panel], columns: int = 2) -> Any:
    """A matplotlib figure with a panel for each chart; its lines are told apart without colour too.

    Args:
        charts: what is drawn.
        columns: panels side by side at most.
    """
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    figure, axes = new_figure(5.4 * columns, 4.0 * rows, rows, columns)
    for chart, axis in zip(charts, axes.flat, strict=False):
        axis.set_title(chart.title, fontsize=10, loc="left")
        for line in chart.lines:
            _draw(axis, line)
        _scale(axis.xaxis, axis.set_xlabel, axis.set_xscale, axis.set_xlim, chart.x)
        _scale(axis.yaxis, axis.set_ylabel, axis.set_yscale, axis.set_ylim, chart.y)
        if sum(line.place is not None for line in chart.lines) > 1:
            axis.legend(frameon=False, fontsize=8)
    for axis in axes.flat[len(charts) :]:
        axis.axis("off")
    return figure


def dots(values: Mapping[str, Sequence[float]], axis: Axis, title: str = "") -> Any:
    """A matplotlib figure of one figure of several things: a dot at its mean over seeds, a bar of
    one standard deviation to both sides, and a faint dot for each seed.

    Args:
        values: by the thing's name, a value a seed.
        axis: what is measured.
        title: over it.
    """
    figure, axes = new_figure(6.4, 1.2 + 0.34 * len(values))
    panel = axes[0, 0]
    for place, own in enumerate(values.values()):
        known = [value for value in own if value == value]
        if not known:
            continue
        colour = COLOURS[place % len(COLOURS)]
        bar = stdev(known) if len(known) > 1 else None
        mark = MARKS[place % len(MARKS)]
        panel.errorbar(mean(known), place, xerr=bar, fmt=mark, color=colour, capsize=3)
        if len(known) > 1:
            panel.plot(known, [place] * len(known), ".", color=FAINT, markersize=4, zorder=0)
    panel.set_yticks(range(len(values)), list(values), fontsize=9)
    panel.invert_yaxis()
    panel.margins(y=0.1)
    # From the figure's edge and not the panel's: names stand left of that, and titles are long.
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    panel.grid(axis="x", color=FAINT, alpha=0.3)
    _scale(panel.xaxis, panel.set_xlabel, panel.set_xscale, panel.set_xlim, axis)
    return figure


def _draw(axis: Any, line: Line) -> None:
    guide = line.place is None
    place = line.place or 0
    colour = FAINT if guide else COLOURS[place % len(COLOURS)]
    dash = "-" if guide or line.kind == "area" else DASHES[place % len(DASHES)]
    marked = line.kind in ("marked", "points")
    axis.plot(
        line.x,
        line.y,
        linestyle="none" if line.kind == "points" else dash,
        marker=MARKS[place % len(MARKS)] if marked else None,
        markersize=7 if line.kind == "points" else 4,
        color=colour,
        linewidth=1 if guide else 1.6,
        label=None if guide else line.name,
    )
    if line.kind == "area":
        axis.fill_between(line.x, line.y, color=colour, alpha=0.16, linewidth=0)


def _scale(ticks: Any, name: Any, scale: Any, span: Any, axis: Axis) -> None:
    name(axis.title)
    if axis.form == "log":
        scale("log")
    elif axis.form == "percent":
        ticks.set_major_formatter(require("matplotlib.ticker", "fit").PercentFormatter(1.0))
    elif axis.form == "bare":
        ticks.set_ticklabels([])
    if axis.span is not None:
        span(*axis.span)
