"""Draw the floors of the house from the code: `python docs/draw.py` writes the picture.

Every room is a box with its modules. An arrow says that something in a room imports something in
the other; arrows that longer ways say already, and those to `errors`, which everybody has, are left
out.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import networkx as nx
from floors import FLOORS, PACKAGE, UP, arrows, circles, complaints, imports, places

PICTURE = Path(__file__).parent / "pictures" / "floors.svg"

WIDTH, MARGIN, LABEL = 1180, 28, 150
TOP, BOTTOM = 84, 40
HEAD, CHIP, PAD, BETWEEN = 27, 17, 10, 50
LETTER, BOLD = 6.1, 8.1  # widths of a letter of a module's and of a room's name, in pixels
LONGEST = 6  # modules in a column
INK, FAINT, PAPER, BAND, ALARM = "#26303a", "#7d8790", "#fdfcfa", "#f3f1ec", "#b3261e"
SANS = "font-family='Helvetica Neue, Arial, DejaVu Sans, sans-serif'"
MONO = "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace'"

KINDS = {  # the question that a room answers: edge, face, rooms
    "how particles differ": (
        "#8a5a12",
        "#fbeed6",
        "particles inputs storage posterior memory precision posteriors",
    ),
    "how they move": ("#8c2f4b", "#fae3e9", "transport"),
    "what they say together": (
        "#1f6f5c",
        "#dcf1ea",
        "classes metrics likelihood generation prediction evaluation",
    ),
    "who uses them": (
        "#2b5a94",
        "#e2ecf8",
        "data models training interop recipes report runs experiments serve cli",
    ),
    "the ground": (
        "#5f676e",
        "#e9ebed",
        "errors trees files sealed patterns console host kernels folders parallel",
    ),
}


@dataclass
class Box:
    """A room in the picture; lengths in pixels."""

    name: str
    modules: list[str]
    x: float = 0.0
    y: float = 0.0

    @property
    def columns(self) -> list[list[str]]:
        """Its modules, at most `LONGEST` below each other."""
        count = max(-(-len(self.modules) // LONGEST), 1)
        each = -(-len(self.modules) // count)
        return [self.modules[i : i + each] for i in range(0, len(self.modules), max(each, 1))]

    @property
    def wide(self) -> float:
        """Its width."""
        widths = [column_width(column) for column in self.columns]
        return max(sum(widths) + PAD, BOLD * len(self.name) + 2 * PAD + 6, 76)

    @property
    def high(self) -> float:
        """Its height."""
        rows = max((len(column) for column in self.columns), default=0)
        return HEAD + (rows * CHIP + 6 if rows else 3)

    @property
    def middle(self) -> float:
        """The horizontal middle."""
        return self.x + self.wide / 2


def column_width(modules: list[str]) -> float:
    """Width of modules below each other."""
    return max(len(module) for module in modules) * LETTER + PAD


def colours(name: str) -> tuple[str, str]:
    """Edge and face of a room."""
    return next((edge, face) for edge, face, rooms in KINDS.values() if name in rooms.split())


def modules_of(graph: nx.DiGraph, name: str) -> list[str]:
    """What is in a folder: its modules, and the folders in it with their number of modules."""
    inside = f"{PACKAGE}.{name}."
    found: dict[str, int] = {}
    for module in sorted(graph.nodes):
        if module.startswith(inside):
            first = module.removeprefix(inside).partition(".")[0]
            found[first] = found.get(first, -1) + 1
    return [f"{first}/ {count}" if count else first for first, count in found.items()]


def laid_out(graph: nx.DiGraph) -> tuple[dict[str, Box], list[tuple[str, float, float]]]:
    """The boxes of all rooms, and every floor's title, top and bottom; the highest floor first."""
    boxes: dict[str, Box] = {}
    floors = []
    y = float(TOP)
    for title, row in reversed(FLOORS):
        made = [Box(name, modules_of(graph, name)) for name in row.split()]
        high = max(box.high for box in made)
        free = WIDTH - 2 * MARGIN - LABEL - sum(box.wide for box in made)
        gap = min(free / (len(made) + 1), 100.0)
        x = MARGIN + LABEL + (free - gap * (len(made) - 1)) / 2
        for box in made:
            box.x, box.y = x, y + (high - box.high) / 2
            x += box.wide + gap
            boxes[box.name] = box
        floors.append((title, y - 12, y + high + 12))
        y += high + BETWEEN
    return boxes, floors


def drawn(graph: nx.DiGraph) -> list[tuple[str, str]]:
    """The arrows that no longer way says already, and those that run back up."""
    pairs = nx.DiGraph([pair for pair in arrows(graph) if pair not in UP and pair[1] != "errors"])
    return [*sorted(nx.transitive_reduction(pairs).edges), *sorted(set(UP) & set(arrows(graph)))]


def gaps(boxes: dict[str, Box]) -> list[list[float]]:
    """For every floor, lowest first, the places between its boxes where an arrow can pass."""
    found = []
    for _, row in FLOORS:
        made = [boxes[name] for name in row.split()]
        between = [(a.x + a.wide + b.x) / 2 for a, b in pairwise(made)]
        found.append([made[0].x - 22, *between, made[-1].x + made[-1].wide + 22])
    return found


def ports(boxes: dict[str, Box], edges: list[tuple[str, str]]) -> dict[tuple[str, str, str], float]:
    """Where each arrow between two floors touches its boxes, spread over their edges."""
    at = places()
    found = {}
    for name, box in boxes.items():
        for side in (1, -1):
            mine = [edge for edge in edges if name in edge]
            others = [(edge, edge[edge[0] == name]) for edge in mine]
            others = [(edge, o) for edge, o in others if (at[o][0] - at[name][0]) * side > 0]
            others.sort(key=lambda pair: boxes[pair[1]].middle)
            for i, (edge, _) in enumerate(others, 1):
                found[(*edge, name)] = box.x + 12 + (box.wide - 24) * i / (len(others) + 1)
    return found


def route(points: list[tuple[float, float]]) -> str:
    """A smooth way through points, vertical at each of them."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        half = (y0 + y1) / 2
        path += f" C{x0:.1f} {half:.1f} {x1:.1f} {half:.1f} {x1:.1f} {y1:.1f}"
    return path


def beside(a: Box, b: Box, next_to: bool) -> str:
    """The way on one floor from ``a`` to ``b``: to the left, or back to the right."""
    if next_to:
        y = a.y + a.high / 2
        return f"M{a.x:.1f} {y:.1f} L{b.x + b.wide + 7:.1f} {y:.1f}"
    y0, y1 = a.y + a.high, b.y + b.high
    deep = max(y0, y1) + 26
    if a.x < b.x:
        x0, x1 = a.x + a.wide - 16, b.x + 16
        bend = f"C{x0 + 6:.1f} {deep:.1f} {x1 - 6:.1f} {deep:.1f}"
        return f"M{x0:.1f} {y0:.1f} {bend} {x1:.1f} {y1 + 7:.1f}"
    return (
        f"M{a.x + 16:.1f} {y0:.1f} C{a.x + 10:.1f} {deep:.1f} "
        f"{b.x + b.wide - 10:.1f} {deep:.1f} {b.x + b.wide - 16:.1f} {y1 + 7:.1f}"
    )


def ways(boxes: dict[str, Box], edges: list[tuple[str, str]]) -> list[str]:
    """The arrows as SVG; those that run back up are dashed."""
    at, port, free = places(), ports(boxes, edges), gaps(boxes)
    rows = [[boxes[name] for name in row.split()] for _, row in FLOORS]
    tops = [min(box.y for box in row) - 10 for row in rows]
    ends = [max(box.y + box.high for box in row) + 10 for row in rows]
    taken: dict[tuple[int, float], int] = {}
    lines = []
    for user, used in edges:
        a, b = boxes[user], boxes[used]
        if at[user][0] == at[used][0]:
            path = beside(a, b, at[user][1] - at[used][1] == 1)
        else:
            up = at[user] < at[used]
            upper, lower = (used, user) if up else (user, used)
            high, low = at[upper][0], at[lower][0]
            x0, x1 = port[user, used, upper], port[user, used, lower]
            points = [(x0, boxes[upper].y + boxes[upper].high + 7 * up), (x0, ends[high])]
            for floor in range(high - 1, low, -1):
                straight = x0 + (x1 - x0) * (high - floor) / (high - low)
                gap = min(free[floor], key=lambda x, near=straight: abs(x - near))
                count = taken.get((floor, gap), 0)
                taken[floor, gap] = count + 1
                x = gap + (-1) ** count * 6 * ((count + 1) // 2)
                points += [(x, tops[floor]), (x, ends[floor])]
            points += [(x1, tops[low]), (x1, boxes[lower].y - 7 * (not up))]
            path = route(points[::-1] if up else points)
        edge = ALARM if (user, used) in UP else colours(user)[0]
        dashed = " stroke-dasharray='5 4'" if (user, used) in UP else ""
        lines.append(
            f"<path d='{path}' fill='none' stroke='{edge}' stroke-width='1.4' "
            f"stroke-opacity='.75'{dashed} marker-end='url(#{mark(edge)})'/>"
        )
    return lines


def mark(colour: str) -> str:
    """The name of the arrow head of a colour."""
    return f"head-{colour[1:]}"


def text(x: float, y: float, words: str, size: float, colour: str = INK, more: str = SANS) -> str:
    """A line of text as SVG."""
    where = f"x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{colour}'"
    return f"<text {where} {more}>{escape(words)}</text>"


def picture(graph: nx.DiGraph) -> str:
    """The floors as SVG, from the modules and their imports (`floors.imports`)."""
    boxes, floors = laid_out(graph)
    height = floors[-1][2] + BOTTOM
    heads = [
        f"<marker id='{mark(edge)}' viewBox='0 0 8 8' refX='1' refY='4' markerWidth='7' "
        f"markerHeight='7' orient='auto'><path d='M0 0 L8 4 L0 8 z' fill='{edge}'/></marker>"
        for edge in (ALARM, *(edge for edge, _, _ in KINDS.values()))
    ]
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' "
        f"width='{WIDTH}' height='{height:.0f}' role='img' aria-label='The floors of bella'>",
        f"<defs>{''.join(heads)}</defs>",
        f"<rect width='100%' height='100%' rx='10' fill='{PAPER}'/>",
        text(MARGIN, 40, "The house, from its imports", 21, more=f"{SANS} font-weight='600'"),
    ]
    x = WIDTH - MARGIN
    for name, (edge, face, _) in reversed(KINDS.items()):
        x -= 7.1 * len(name)
        lines.append(text(x, 39, name, 12.5, edge))
        lines.append(
            f"<rect x='{x - 19:.1f}' y='28' width='13' height='13' rx='3' fill='{face}' "
            f"stroke='{edge}'/>"
        )
        x -= 40
    for title, top, bottom in floors:
        lines.append(
            f"<rect x='{MARGIN - 12}' y='{top:.1f}' width='{WIDTH - 2 * MARGIN + 24}' "
            f"height='{bottom - top:.1f}' rx='8' fill='{BAND}'/>"
        )
        words = textwrap.wrap(title, 20)
        y = (top + bottom) / 2 - 8 * (len(words) - 1) + 4
        lines += [text(MARGIN, y + 16 * i, line, 12.5, FAINT) for i, line in enumerate(words)]
    lines += ways(boxes, drawn(graph))
    for box in boxes.values():
        edge, face = colours(box.name)
        lines.append(
            f"<rect x='{box.x:.1f}' y='{box.y:.1f}' width='{box.wide:.1f}' "
            f"height='{box.high:.1f}' rx='6' fill='{face}' stroke='{edge}' stroke-width='1.2'/>"
        )
        name = box.name + ("/" if box.modules else "")
        lines.append(text(box.x + PAD, box.y + 18, name, 13, edge, f"{MONO} font-weight='700'"))
        x = box.x + PAD
        for column in box.columns:
            for i, module in enumerate(column):
                lines.append(text(x, box.y + HEAD + 11 + CHIP * i, module, 10, INK, MONO))
            x += column_width(column)
    lines.append(text(MARGIN, height - 16, note(graph), 11.5, FAINT))
    return "\n".join([*lines, "</svg>", ""])


def note(graph: nx.DiGraph) -> str:
    """What the picture leaves out, in a sentence."""
    up = ", ".join(f"{user} to {used}" for user, used in UP)
    return (
        f"{len(graph)} modules. An arrow means imports; drawn where no longer way says so already, "
        f"and not to errors. Circles: {len(circles(graph)) or 'none'}. "
        f"Dashed, back up: {up or 'none'}."
    )


if __name__ == "__main__":
    house = imports()
    if wrong := complaints(house):
        sys.exit("\n".join(wrong))
    PICTURE.write_text(picture(house), encoding="utf-8")
