"""``bella predict``: what the particles say of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bella.cli.common import (
    BadImage,
    Column,
    Device,
    Json,
    OnBad,
    OwnCode,
    Precision,
    Quiet,
    Run,
    Workers,
    hush,
    print_json,
    read_by,
    say,
)


def predict(
    run: Run,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files and folders; of texts one file, or a set's name: its test part.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV or JSON lines (.jsonl) to write.")] = Path(
        "predictions.csv"
    ),
    column: Column = None,
    on_bad_image: OnBad = BadImage.stop,
    device: Device = None,
    precision: Precision = "float32",
    workers: Workers = 0,
    own_code: OwnCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is said of each image or row: class, uncertainties, and rank by uncertainty."""
    hush(quiet)
    from bella.console import progress_bar
    from bella.runs import open_run
    from bella.runs.rows import check_rows

    check_rows(out)
    with progress_bar(not (json or quiet)) as bar:
        opened = open_run(
            run, device=device, workers=workers, own_code=own_code, precision=precision
        )
        opened = read_by(opened, column, workers)
        predictions = opened.predict(images, bar, on_bad_image.value)
    predictions.write(out)
    if json:
        print_json(predictions.rows())
        return
    from rich.console import Console
    from rich.table import Table

    from bella.console import shown_text

    rows = sorted(predictions.rows(), key=lambda row: row["rank"])
    table = Table(title=f"least certain of {len(rows)} {predictions.examples}")
    for name in predictions.shown:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows[:10]:
        values = [row[name] for name in predictions.shown]
        # Text, because a name may look like rich's markup.
        table.add_row(
            *(shown_text(f"{v:.4f}" if isinstance(v, float) else _short(v)) for v in values)
        )
    Console().print(table)
    say(f"All are in {out}")


def _short(value: Any) -> str:
    """A cell of a terminal's table: a long text as it begins."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
