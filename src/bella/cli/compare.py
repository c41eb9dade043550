"""``bella compare``: methods side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bella.cli.common import Json, Quiet, given, hush, print_json, stopping


def compare(
    data: Annotated[
        str,
        typer.Option(
            help="elpv, fashion-mnist, fashion-resnet, fashion-mlp, or your folder or CSV."
        ),
    ] = "elpv",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma between: probe, probe-ensemble, single, ensemble, svgd, lora, "
            "lora-ensemble, bella, bella-svgd, bella-function, vbl, rank1, vi, ssvi, ssvi-0.05, "
            "soup, single+temperature, lora+temperature."
        ),
    ] = "probe,lora,lora+temperature,lora-ensemble,bella",
    network: Annotated[str, typer.Option(help="For your own data.")] = "efficientnet-lite0",
    image_size: Annotated[
        int | None, typer.Option(help="For your own data.", show_default="the network's")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="the task's, or 5")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step.", show_default="the task's, or 32")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its peak.", show_default="the task's, or 0.001")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a better validation NLL.",
            show_default="no early stop",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="no (as the parameters are), bf16 or fp16.", show_default="no"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder.")] = Path("runs/compare"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Methods side by side on the same data, budget and seeds; continues where it stopped.

    Writes results.json, report.html, report.md and pictures.
    """
    hush(quiet)
    from bella.errors import MissingExtraError
    from bella.experiments.compare import compare as run
    from bella.experiments.material import write_html
    from bella.experiments.page import write_page
    from bella.experiments.tasks import TASKS, folder_task, task_named

    task = task_named(data) if data in TASKS else folder_task(data, network, image_size=image_size)
    asked = given(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        precision=precision,
    )
    with stopping(lambda: f"stopped; the same command continues a comparison in {out}."):
        results = run(
            task,
            methods.split(","),
            seeds=seeds,
            folder=out,
            progress=not (json or quiet),
            **asked,
        )
        write_page(task, results, out)
        try:
            write_html(task, results, out)
        except MissingExtraError as error:  # all else is there already
            print(f"Note: {error}", file=sys.stderr)
    if json:
        print_json(results)
    else:
        print_comparison(results, out)


def print_comparison(results: dict[str, Any], folder: Path) -> None:
    """Print a comparison's table, and in words what it shows."""
    from rich.console import Console

    from bella.report.tables import rich_table
    from bella.report.verdict import verdict

    console = Console()
    # A table is worth more whole than wrapped: wider than the terminal if it must be.
    console.width = max(console.width, 180)
    console.print(rich_table(results))
    for said in verdict(results):
        print(f"- {said}")
    page = next(name for name in ("report.html", "report.md") if (folder / name).exists())
    print(f"Everything is in {folder}, the report in {folder / page}")
