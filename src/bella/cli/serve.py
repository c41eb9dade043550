"""``bella serve``: a run over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bella.cli.common import Device, OwnCode, Precision, Quiet, Run, given, hush

TOKEN = "BELLA_TOKEN"
"""The variable of the environment that may hold the token."""


def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond this machine it takes a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any free one.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that requests must bear.", show_default=f"${TOKEN}"),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Labelled examples that the run was not trained on: answers above the entropy "
            "that they promise by are marked for a person.",
            show_default=False,
        ),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(help="Of --calibrate: wrong answers below it.", show_default="0.05"),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Of --calibrate: that it promises wrongly.", show_default="0.1"),
    ] = None,
    refer_above: Annotated[
        float | None,
        typer.Option(help="Such an entropy in nats, by itself.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Examples in a pass, and in a request.", show_default="32; 8 of language models"
        ),
    ] = None,
    wait_ms: Annotated[
        float | None,
        typer.Option(help="Milliseconds that a pass waits for others.", show_default="5"),
    ] = None,
    queue: Annotated[
        int | None, typer.Option(help="Examples that may wait (429).", show_default="256")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="To an answer (503).", show_default="30; 120 of language models"),
    ] = None,
    body_mib: Annotated[
        float | None, typer.Option(help="MiB of a request (413).", show_default="16")
    ] = None,
    pixels: Annotated[
        int | None, typer.Option(help="Of an image (413).", show_default="50000000")
    ] = None,
    characters: Annotated[
        int | None, typer.Option(help="Of a text (413).", show_default="100000")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Of an answer, at most (413).", show_default="256")
    ] = None,
    passes: Annotated[int | None, typer.Option(help="At a time.", show_default="1")] = None,
    precision: Precision = "float32",
    device: Device = None,
    own_code: OwnCode = False,
    quiet: Quiet = False,
) -> None:
    """Answer over HTTP, with a page for people: predictions of images and texts, and answers."""
    hush(quiet)
    from bella.serve import serve as run_service
    from bella.serve.server import token_from

    run_service(
        run,
        host=host,
        port=port,
        token=token_from(token_file, os.environ.get(TOKEN)),
        limits=given(
            batch=batch,
            wait=None if wait_ms is None else wait_ms / 1000,
            queue=queue,
            seconds=seconds,
            body=None if body_mib is None else int(body_mib * 2**20),
            pixels=pixels,
            characters=characters,
            tokens=max_new_tokens,
            passes=passes,
        ),
        device=device,
        own_code=own_code,
        precision=precision,
        calibrate=calibrate,
        risk=risk,
        delta=delta,
        refer_above=refer_above,
        quiet=quiet,
    )
