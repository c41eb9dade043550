"""``bella reference``: methods beside the posterior itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bella.cli.common import Json, Quiet, hush, listed, print_json, stopping


def reference(
    problems: Annotated[
        str | None,
        typer.Option(help="Of linear, logistic, low-rank; comma between.", show_default="all"),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma between: single, ensemble, repulsive, svgd, function, ensemble+noise, "
            "repulsive+noise, svgd+noise, laplace, mola, vi, ssvi, ssvi-cold, rank1.",
            show_default="all",
        ),
    ] = None,
    particles: Annotated[int, typer.Option(help="Of methods that have several.")] = 20,
    steps: Annotated[
        int, typer.Option(help="Of a training; Langevin dynamics take six times as many.")
    ] = 1000,
    chains: Annotated[int, typer.Option(help="Of the sampler.")] = 4,
    warmup: Annotated[int, typer.Option(help="Steps of a chain before it draws.")] = 500,
    draws: Annotated[int, typer.Option(help="Of each chain.")] = 1000,
    seed: Annotated[int, typer.Option(help="Decides data, starts and draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder; it keeps the draws.")] = Path("runs/reference"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How good is the posterior: every method beside long runs of NUTS on small problems.

    Writes reference.md, reference.csv, reference.png and results.json.
    """
    hush(quiet)
    from bella.errors import require
    from bella.experiments.reference.methods import METHODS, Budget
    from bella.experiments.reference.page import write_page
    from bella.experiments.reference.problems import PROBLEMS
    from bella.experiments.reference.run import reference as run

    require("matplotlib", "fit")  # before anything is sampled
    with stopping(lambda: f"stopped; draws that are finished stay in {out}."):
        results = run(
            out,
            problems=list(PROBLEMS) if problems is None else listed(problems) or [],
            methods=list(METHODS) if methods is None else listed(methods) or [],
            budget=Budget(particles=particles, steps=steps, seed=seed),
            chains=chains,
            warmup=warmup,
            draws=draws,
            progress=not (json or quiet),
        )
        page = write_page(results, out)
    if json:
        print_json(results)
    else:
        print_reference(results, page)


def print_reference(results: dict[str, Any], page: Path) -> None:
    """Print every problem's table."""
    from rich.console import Console
    from rich.table import Table

    from bella.experiments.reference.page import COLUMNS, about, cells

    console = Console()
    console.width = max(console.width, 130)
    for found in results["problems"].values():
        table = Table(title=found["title"], caption=about(found).replace("**", ""))
        table.add_column("")
        for head, _ in COLUMNS.values():
            table.add_column(head, justify="right")
        for row in found["rows"].values():
            if "why_not" not in row:
                table.add_row(row["title"], *cells(row))
        console.print(table)
    print(f"Everything is in {page.parent}, the tables in {page}")
