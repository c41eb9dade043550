"""``bella export``: one plain network of a run, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bella.cli.common import Quiet, Run, hush


def export(
    run: Run,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write, with configuration and class names; or a file of weights alone, "
            ".safetensors.",
            show_default=False,
        ),
    ],
    particle: Annotated[
        int | None, typer.Option(help="This particle.", show_default="the soup of all")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write one plain network as transformers or timm load it: the soup of all, or a particle."""
    hush(quiet)
    from bella.runs import export as write
    from bella.runs import open_run

    print(f"{out}: {write(open_run(run, device='cpu'), out, particle):,} numbers")
