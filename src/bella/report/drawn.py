"""Charts as plotly draws them: JSON for a page that holds plotly's JavaScript."""

from __future__ import annotations

import base64
import gzip
from typing import Any

from bella.errors import require
from bella.report.charts import Axis, Chart, Line

EXTRA = "report"

COLOURS = (
    "#2f7fc1",
    "#cf4a5a",
    "#b37400",
    "#00897b",
    "#8b62c9",
    "#6b7f2a",
    "#c2539b",
    "#71808f",
)
"""Each stands out by 3 to 1 on the light page and on the dark one: neither needs its own."""

MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "pentagon", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
"""Lines differ by these too, for eyes and printers without colour."""

FAINT = "#8a939c"


def drawn(chart: Chart) -> dict[str, Any]:
    """A chart as plotly's data and layout. Text and grid take their colours from the page."""
    go = require("plotly.graph_objects", EXTRA)
    figure = go.Figure([_trace(go, line) for line in chart.lines], go.Layout(template=None))
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 20, "t": 8, "b": 8},
        height=360,
        font={"family": "inherit", "size": 13},
        hoverlabel={"font": {"family": "inherit"}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        showlegend=len(chart.lines) > 1,
        dragmode=False,
        xaxis=_axis(chart.x),
        yaxis=_axis(chart.y),
    )
    return figure.to_plotly_json()


def _trace(go: Any, line: Line) -> Any:
    guide = line.place is None
    place = line.place or 0
    colour = FAINT if guide else COLOURS[place % len(COLOURS)]
    mode = {"line": "lines", "area": "lines", "marked": "lines+markers", "points": "markers"}
    values = "%{x}, %{y}"
    return go.Scatter(
        x=list(line.x),
        y=list(line.y),
        name=line.name,
        mode=mode[line.kind],
        line={
            "color": colour,
            "width": 1 if guide else 3 if place == 0 else 1.75,
            "dash": "solid" if guide or line.kind == "area" else DASHES[place % len(DASHES)],
        },
        marker={
            "color": colour,
            "size": 11 if line.kind == "points" else 7,
            "symbol": MARKS[place % len(MARKS)],
        },
        visible="legendonly" if line.asked else True,
        fill="tozeroy" if line.kind == "area" else None,
        fillcolor=_pale(colour) if line.kind == "area" else None,
        showlegend=not guide,
        text=list(line.notes) or None,
        hovertemplate=(f"%{{text}}<br>{values}" if line.notes else f"{line.name}<br>{values}")
        + "<extra></extra>",
        hoverinfo="skip" if guide else None,
    )


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "title": {"text": axis.title, "font": {"size": 13}},
        "type": "log" if axis.form == "log" else "linear",
        "tickformat": {"percent": ".0%"}.get(axis.form),
        "hoverformat": {"percent": ".1%", "bare": ".2f"}.get(axis.form, ".3~g"),
        "showticklabels": axis.form != "bare",
        "exponentformat": "power",
        "dtick": 1 if axis.form == "log" else axis.step,
        "range": axis.span,
        "gridcolor": FAINT,
        "linecolor": FAINT,
        "showline": True,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
    }


def script() -> str:
    """plotly's own JavaScript, gzipped, in base64: 2 MB in the place of 4.8."""
    source = require("plotly.offline", EXTRA).get_plotlyjs().encode()
    return base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
