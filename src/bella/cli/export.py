"""``bella export``: plain networks, PEFT's adapters, or a folder for the hub."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bella.cli.common import OwnCode, Quiet, Run, hush, say


class Format(StrEnum):
    """What is written."""

    network = "network"
    peft = "peft"
    hub = "hub"


class Soup(StrEnum):
    """The mean of the particles beside PEFT's adapters."""

    adapter = "adapter"
    merged = "merged"
    none = "none"


def export(
    run: Run,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write; or, of a network, a file of weights alone, .safetensors.",
            show_default=False,
        ),
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="network: one plain network. peft: an adapter for each particle. hub: the run "
            "with a model card.",
        ),
    ] = Format.network,
    particle: Annotated[
        int | None,
        typer.Option(help="Of network: this particle.", show_default="the soup of all"),
    ] = None,
    soup: Annotated[
        Soup,
        typer.Option(help="Of peft: the mean as an adapter of rank n r, merged, or none."),
    ] = Soup.adapter,
    check: Annotated[
        bool, typer.Option("--check", help="Of peft: read all back and compare it bit for bit.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="Of hub: upload it as OWNER/NAME.", show_default="no upload")
    ] = None,
    own_code: OwnCode = False,
    quiet: Quiet = False,
) -> None:
    """Write a run for other programs: transformers or timm, PEFT and its servers, the hub."""
    hush(quiet)
    from bella.errors import BellaError
    from bella.interop.hub import push_to_hub, save_pretrained
    from bella.interop.peft import to_peft
    from bella.runs import TextRun, VqaRun, open_run
    from bella.runs import export as write

    strange = [
        name
        for name, given, of in (
            ("--particle", particle is not None, Format.network),
            ("--soup", soup is not Soup.adapter, Format.peft),
            ("--check", check, Format.peft),
            ("--push", push is not None, Format.hub),
        )
        if given and form is not of
    ]
    if strange:
        raise BellaError(f"{strange[0]} is no option of --format {form.value}: leave it out.")
    if form is Format.hub:
        save_pretrained(run, out)
        say(f"{out}: the run with a model card")
        if push is not None:
            say(push_to_hub(run, push))
        return
    opened = open_run(run, device="cpu", own_code=own_code)
    if isinstance(opened, VqaRun):
        raise BellaError(
            "bella export writes runs on images and on texts: of questions about pictures write "
            "one network by open_run(...).posterior.soup().save_pretrained, and adapters by "
            "bella.to_peft."
        )
    if isinstance(opened, TextRun) and opened.task.wrapped:
        raise BellaError(
            f"Other programs do not take the network of task {opened.task.name}, because "
            f"{opened.task.wrapped}: bella export writes runs of the tasks text and causal-lm."
        )
    if form is Format.network:
        say(f"{out}: {write(opened, out, particle):,} numbers")
        return
    base = opened.network.removeprefix("hf:") if opened.network.startswith("hf:") else None
    for folder in to_peft(opened.posterior, out, soup=soup.value, base=base, check=check):
        say(str(folder))
