"""``bella evaluate``: all figures of a run on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bella.cli.common import (
    BadImage,
    Device,
    Json,
    OnBad,
    OwnCode,
    Quiet,
    Run,
    Workers,
    hush,
    print_figures,
    print_json,
)


def evaluate(
    run: Run,
    data: Annotated[Path, typer.Option(help="Labelled images: folder or CSV.", show_default=False)],
    ood: Annotated[Path | None, typer.Option(help="Folder of images of another kind.")] = None,
    on_bad_image: OnBad = BadImage.stop,
    device: Device = None,
    workers: Workers = 0,
    own_code: OwnCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy, calibration and uncertainty of a run on labelled images."""
    hush(quiet)
    from bella.console import progress_bar
    from bella.runs import open_run

    with progress_bar(not (json or quiet)) as bar:
        opened = open_run(run, device=device, workers=workers, own_code=own_code)
        found = opened.evaluate(data, ood, bar, on_bad_image.value)
    if json:
        print_json(found)
    else:
        print_figures(found, str(data))
