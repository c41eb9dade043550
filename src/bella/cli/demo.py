"""``bella demo``: the comparison on real images that come with a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bella.cli.common import Json, Quiet, hush, print_json, stopping
from bella.cli.compare import print_comparison


def demo(
    data: Annotated[str, typer.Option(help="elpv or fashion-mnist.")] = "elpv",
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    precision: Annotated[
        str,
        typer.Option(
            help="auto (bf16 where the device multiplies it, the network gains and the first batch "
            "agrees), float32 or bf16."
        ),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder; runs/demo-DATA by default.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train all methods on real images; print the table, write report.html and report.md."""
    hush(quiet)
    from bella.experiments.demo import demo as run

    folder = out or Path("runs") / f"demo-{data}"
    with stopping(lambda: f"stopped; the same command continues a comparison in {folder}."):
        results = run(
            data, folder=folder, seeds=seeds, progress=not (json or quiet), precision=precision
        )
    if json:
        print_json(results)
    else:
        print_comparison(results, folder)
