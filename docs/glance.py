"""Draw the README's picture from a demo: `python docs/glance.py runs/demo-elpv`.

A square is a solar cell of a kind that no method was shown; as many are filled as the method
notices, a mean over the demo's seeds. Noticed is what scores above 95 in 100 known test cells.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from drawing import FAINT, FONT, GREEN, GUIDE, INK, PAPER, PICTURES, night

from bella.experiments.predictions import read_outputs
from bella.report.tables import read_results

PICTURE = PICTURES / "glance.svg"

KNOWN, STRANGE = "test", "poly"
SHARE = 0.95
"""Of the known cells that are left in peace."""

SIDE, STEP, COLUMNS = 6.6, 8.4, 20
WIDTH, TOP, LEFT, APART = 800, 86, 24, 192


@dataclass(frozen=True)
class Panel:
    """One method.

    Attributes:
        method: its row of the demo.
        score: a figure of its predictive.
        title: in words.
        words: what it looks at.
    """

    method: str
    score: str
    title: str
    words: str


PANELS = (
    Panel("lora", "entropy", "One LoRA", "by its entropy"),
    Panel("repulsive", "mutual_information", "Five particles", "by what they dispute"),
    Panel("anchors", "novelty", "No particles", "readouts and a distance"),
    Panel("bella", "novelty", "Bella, the default", "particles, readouts, distance"),
)


def noticed(folder: Path, panel: Panel, seeds: int) -> tuple[float, int]:
    """How many strange cells a method notices, a mean over seeds, and of how many."""
    counts, of = [], 0
    for seed in range(seeds):
        said = read_outputs(folder / "runs" / f"{panel.method}-{seed}")
        known, strange = (getattr(said[part][0], panel.score) for part in (KNOWN, STRANGE))
        counts.append(int((strange > known.quantile(SHARE)).sum()))
        of = len(strange)
    return sum(counts) / seeds, of


def squares(x: float, count: int, of: int) -> str:
    """A square for each cell, the first of them filled, row by row from below."""
    places = [
        f"M{x + STEP * (i % COLUMNS):.1f} {TOP + STEP * (COLUMNS - 1 - i // COLUMNS):.1f}"
        f"h{SIDE}v{SIDE}h-{SIDE}z"
        for i in range(of)
    ]
    return (
        f"<path d='{''.join(places[:count])}' style='fill: {GREEN}'/>"
        f"<path d='{''.join(places[count:])}' style='fill: {GUIDE}'/>"
    )


def text(x: float, y: float, words: str, size: float, colour: str = INK, bold: bool = False) -> str:
    """A line of text."""
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}'{weight} style='fill: {colour}'>"
        f"{escape(words)}</text>"
    )


def glance(folder: Path) -> str:
    """The picture as SVG, from the folder of a demo on solar cells."""
    seeds = read_results(folder)["seeds"]
    found = {panel: noticed(folder, panel, seeds) for panel in PANELS}
    of = next(iter(found.values()))[1]
    below = TOP + STEP * (of / COLUMNS)
    high = below + 104
    said = "; ".join(f"{p.title} {p.words}: {round(n)}" for p, (n, _) in found.items())
    question = f"Of {of} solar cells of a kind never shown, how many are noticed?"
    alarms = f"Each doubts {round(100 - 100 * SHARE)} in 100 cells of the known kind."
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {high:.0f}' "
        f"width='{WIDTH}' height='{high:.0f}' font-family=\"{FONT}\" role='img'>",
        f"<title>{escape(question)} {escape(said)}.</title>",
        f"<style>{night()}</style>",
        f"<rect width='100%' height='100%' rx='10' style='fill: {PAPER}'/>",
        text(LEFT, 38, question, 19, bold=True),
        text(LEFT, 62, f"{alarms} Means of {seeds} seeds.", 13.5, FAINT),
    ]
    for number, (panel, (count, _)) in enumerate(found.items()):
        x = LEFT + APART * number
        lines.append(squares(x, round(count), of))
        lines.append(text(x, below + 38, str(round(count)), 34, GREEN, bold=True))
        lines.append(text(x, below + 62, panel.title, 14.5, bold=True))
        lines.append(text(x, below + 81, panel.words, 13, FAINT))
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(glance(Path(*sys.argv[1:] or ["runs/demo-elpv"])), encoding="utf-8")
