"""A benchmark's command line, its tables on the screen, and its part of docs/performance.md."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as Drawn

from bella.host import machine
from quiet import Watch
from timing import Until

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


@dataclass(frozen=True)
class Options:
    """What the user asked for; every alternative of a benchmark gets the same.

    Attributes:
        device: ``cpu`` or ``cuda``.
        autocast: multiply in bfloat16.
        quick: fewer rounds and smaller cases, to see that all works; writes nothing.
        chunk: particles a pass in the benchmark of chunks; chosen by memory if ``None``.
        seconds: the longest that a group of rounds may take.
    """

    device: str = "cpu"
    autocast: bool = False
    quick: bool = False
    chunk: int | None = None
    seconds: float = 240.0

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.bfloat16 if self.autocast else torch.float32

    def precision(self) -> AbstractContextManager:
        """The context in which networks run forward."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.autocast)

    def until(self, groups: int = 1) -> Until:
        """When rounds end, one of ``groups`` that share the time; after one if it must be quick."""
        return Until(most=1) if self.quick else Until(seconds=self.seconds / groups)

    def flags(self) -> list[str]:
        """The same on a command line."""
        flags = [] if self.device == "cpu" else ["--device", self.device]
        for name in ("chunk", "seconds"):
            value = getattr(self, name)
            flags += [] if value == getattr(Options, name) else [f"--{name}", f"{value:g}"]
        return flags + [f"--{name}" for name in ("autocast", "quick") if getattr(self, name)]


@dataclass(frozen=True)
class Table:
    """Rows under a heading.

    Attributes:
        title: what was run, in words.
        header: names of the columns.
        rows: text.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table for a page."""
        lines = [self.header, [":--", *["--:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join([self.title, "", *(f"| {' | '.join(line)} |" for line in lines)])

    def draw(self) -> Drawn:
        """The table for a terminal."""
        drawn = Drawn(*self.header, title=self.title, title_justify="left")
        for row in self.rows:
            drawn.add_row(*row)
        return drawn


TARGETED = ("quantity", "measured", "target", "met")


def against(name: str, shown: str, value: float, target: float) -> list[str]:
    """A row of a `TARGETED` table: ``value``, shown as ``shown``, must be at most ``target``."""
    return [name, shown, f"at most {target:g}", "yes" if value <= target else "no"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    said = (description or "").splitlines()[0]
    made = argparse.ArgumentParser(description=said)
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--autocast", action="store_true", help="multiply in bfloat16")
    made.add_argument("--quick", action="store_true", help="see that it runs; writes nothing")
    made.add_argument("--chunk", type=int, help="particles a pass, in chunks.py")
    made.add_argument(
        "--seconds", type=float, default=Options.seconds, help="longest for a group of rounds"
    )
    return made


def write(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers of ``name``."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    content = page.read_text()
    if not pattern.search(content):
        sys.exit(f"{page} has no markers for {name}.")
    page.write_text(pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", content))


def main(
    name: str, description: str | None, measure: Callable[[Options], tuple[float, list[Table]]]
) -> None:
    """Run a benchmark from the command line.

    Args:
        name: of the file and of the markers in the page (with ``-cuda`` for a GPU).
        description: its docstring.
        measure: gives the rate of a matrix product during the benchmark, and the tables.
    """
    options = Options(**vars(parser(description).parse_args()))
    torch.manual_seed(0)
    watch = Watch()
    rate, tables = measure(options)
    command = " ".join(["python", f"benchmarks/{name}.py", *options.flags()])
    origin = (
        f"`{command}`: {machine()}, torch {torch.__version__}, square product "
        f"{rate / 1e9:,.0f} GFLOP/s, {date.today()}. {watch.words()}"
    )
    console = Console(width=120)
    console.print(origin, highlight=False)
    for table in tables:
        console.print(table.draw())
    if not options.quick:
        marker = name if options.device == "cpu" else f"{name}-{options.device}"
        write(marker, "\n\n".join([origin, *(table.markdown() for table in tables)]))
