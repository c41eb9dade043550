"""How the pictures of the pages look: one palette, SVG that is small, and legible at night.

matplotlib draws them by day. `save` adds a rule by which the few colours of paper and ink change
where a reader's system is dark; a renderer that knows no such rules shows the picture by day.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
import matplotlib.pyplot as plt

Drawn = tuple[Any, str]
"""A figure of matplotlib, and what it shows in words."""

PICTURES = Path(__file__).parent / "pictures"

PAPER, INK, FAINT, GUIDE = "#fcfbf8", "#23303d", "#77828d", "#d6d9dd"
BLUE, RED, YELLOW, GREEN, VIOLET = "#3b6ea5", "#d1495b", "#d99a2b", "#00798c", "#6a4c93"
PARTICLES = (BLUE, RED, YELLOW, GREEN, VIOLET)
"""A colour for each of five particles."""

NIGHT = {
    PAPER: "#1d2229",
    INK: "#e3e7ec",
    FAINT: "#9aa5b1",
    GUIDE: "#444d57",
    BLUE: "#7fb0e6",
    RED: "#f07a88",
    YELLOW: "#edb95c",
    GREEN: "#3fb6c6",
    VIOLET: "#b493e0",
}
"""Colours by day, and what each is where it is dark."""

FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"

STYLE = {
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "bella",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.7,
    "path.simplify_threshold": 0.5,
}
"""Text stays text: it is small, can be searched, and is drawn in the reader's own `FONT`."""


def panels(titles: list[str], width: float = 8.4, height: float = 2.9, **more: Any) -> Any:
    """A figure with a panel for each title, side by side, and its axes."""
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    figure, axes = plt.subplots(
        1, len(titles), figsize=(width, height), squeeze=False, layout="constrained", **more
    )
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return figure, list(axes[0])


def bare(axis: Any, *, ticks: bool = False) -> None:
    """No frame around a panel, and no ticks."""
    axis.spines[:].set_visible(False)
    if not ticks:
        axis.set(xticks=[], yticks=[])


def shades() -> Any:
    """From sure to unsure, the darker the larger."""
    return mpl.colors.LinearSegmentedColormap.from_list("sure", ["#f4f1ea", YELLOW, RED, VIOLET])


def hills(axis: Any, x: Any, y: Any, values: Any) -> None:
    """Levels over a plane."""
    axis.contourf(x, y, values, levels=10, cmap=shades())


def two_sided(axis: Any, values: Any) -> None:
    """A matrix of numbers from -1 to 1, a colour for each side."""
    both = mpl.colors.LinearSegmentedColormap.from_list("two", [RED, "#f4f1ea", BLUE])
    axis.imshow(values.numpy(), cmap=both, vmin=-1, vmax=1, interpolation="none")


def night() -> str:
    """The rule by which colours that stand in ``style`` change where it is dark."""
    rules = "".join(
        f'[style*="{what}: {day}"]{{{what}:{dark} !important}}'
        for day, dark in NIGHT.items()
        for what in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark) {{{rules}}}"


def save(figure: Any, path: Path, words: str) -> Path:
    """Write a figure as SVG.

    Args:
        figure: matplotlib's.
        path: where to.
        words: what it shows, for those who do not see it.
    """
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", FONT, text)
    head, body = text.split(">", 1)
    text = (
        f'{head} role="img">\n<title>{escape(words)}</title>\n'
        f"<style>image {{image-rendering: pixelated}} {night()}</style>{body}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
