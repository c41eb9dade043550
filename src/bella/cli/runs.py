"""``bella runs``: the runs in a folder."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from bella.cli.common import Json, print_json, say


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, with its folders.")] = Path("runs"),
    json: Json = False,
) -> None:
    """The runs in a folder: what was trained, how far it came, and its figures; newest first."""
    from rich.console import Console
    from rich.table import Table

    from bella.console import shown_text
    from bella.runs.listing import SHOWN, list_runs

    found = list_runs(folder)
    if json:
        print_json([run.row() for run in found])
        return
    if not found:
        say(f"No runs in {folder}.")
        return
    figures = [name for name in SHOWN if any(name in run.figures for run in found)]
    table = Table(title=shown_text(f"{len(found)} runs in {folder}" if found[1:] else f"{folder}"))
    for name in ("run", "state", "method", "network", *figures, "minutes", "changed"):
        table.add_column(name, overflow="fold", justify="right" if name in figures else "left")
    for run in found:
        particles = run.asked.get("particles")
        method = str(run.asked.get("method", ""))
        values = [
            str(run.folder.relative_to(folder)) if run.folder != folder else str(folder),
            run.state,
            f"{method} x{particles}" if particles else method,
            run.asked.get("network", ""),
            *(f"{run.figures[name]:.4f}" if name in run.figures else "-" for name in figures),
            "-" if run.seconds is None else f"{run.seconds / 60:.1f}",
            datetime.fromtimestamp(run.changed).strftime("%Y-%m-%d %H:%M"),
        ]
        table.add_row(*map(shown_text, values))
    Console().print(table)
    for run in found:
        if run.problem:
            say(f"{run.folder}: {run.problem}")
