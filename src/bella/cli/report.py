"""``bella report``: one page about runs and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bella.cli.common import Device, OwnCode, Quiet, Workers, hush, say, words_of


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of `bella fit`, folders of `bella compare` or `bella demo`.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write.", show_default="report.html in the first folder"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Of runs: labelled images, folder or CSV.", show_default="the run's test part"
        ),
    ] = None,
    ood: Annotated[
        Path | None, typer.Option(help="Of runs: a folder of images of another kind.")
    ] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(
            help="Of runs: draw accuracy under these, comma between, such as fog; or all."
        ),
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help="Of runs: draw accuracy under fgsm or pgd.")
    ] = None,
    device: Device = None,
    workers: Workers = 0,
    own_code: OwnCode = False,
    quiet: Quiet = False,
) -> None:
    """One HTML page on what was trained and what it is worth; it opens without a network."""
    hush(quiet)
    from bella.console import progress_bar
    from bella.errors import BellaError, require
    from bella.experiments.material import comparison_material
    from bella.report.html import write_report
    from bella.runs.material import Asked, run_materials

    for library in ("plotly", "jinja2"):  # before the particles are asked
        require(library, "report")
    compared = [folder for folder in runs if (folder / "results.json").exists()]
    own = [folder for folder in runs if folder not in compared]
    asked = Asked(data, ood, words_of(corruptions or ""), attack, device, workers, own_code)
    if compared and not own and (data, ood, corruptions, attack) != (None,) * 4:
        raise BellaError(
            "--data, --ood, --corruptions and --attack are asked of runs of `bella fit`: a "
            "comparison has its parts; leave them out."
        )
    path = out or runs[0] / "report.html"
    with progress_bar(not quiet) as bar:
        found = [comparison_material(folder) for folder in compared]
        found += run_materials(own, asked, bar) if own else []
        size = write_report(found, path)
    say(f"The report is {path} ({size / 1e6:.1f} MB): open it in any browser")
