"""The commands together. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bella import __version__
from bella.cli.cite import cite
from bella.cli.compare import compare
from bella.cli.cost import cost
from bella.cli.data import data
from bella.cli.demo import demo
from bella.cli.evaluate import evaluate
from bella.cli.export import export
from bella.cli.fit import fit
from bella.cli.generate import generate
from bella.cli.paper import figure, table
from bella.cli.predict import predict
from bella.cli.reference import reference
from bella.cli.report import report
from bella.cli.runs import runs
from bella.cli.serve import serve
from bella.errors import BellaError, MissingExtraError, Terminated
from bella.host import keep_freed_memory, terminate

PACKAGE = Path(__file__).parents[1]
"""Where bella's own code stands."""

app = typer.Typer(
    help="Turn a pre-trained network into a Bayesian one, and measure what that bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    demo,
    fit,
    evaluate,
    predict,
    generate,
    compare,
    reference,
    report,
    data,
    export,
    cost,
    serve,
    runs,
    cite,
):
    app.command()(command)
for command in (table, figure):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"bella {__version__}")
        raise typer.Exit()


@app.callback()
def everywhere(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Turn a pre-trained network into a Bayesian one, and measure what that bought."""


@contextmanager
def notes() -> Iterator[None]:
    """Inside the block what bella warns of is a sentence for people, without a line of its code."""
    usual = warnings.formatwarning

    def note(message: Any, category: Any, filename: str, lineno: int, line: Any = None) -> str:
        if Path(filename).is_relative_to(PACKAGE):
            return f"Note: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = note
    try:
        yield
    finally:
        warnings.formatwarning = usual


def main() -> None:
    """Run the command line; bad input gives one sentence and exit status 2, Ctrl-C 130, SIGTERM
    143."""
    keep_freed_memory()
    with contextlib.suppress(ValueError):  # in another thread than the main one
        signal.signal(signal.SIGTERM, terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name of a file need not be text; it is shown with its bytes, not with a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with notes():
            app()
    except (BellaError, MissingExtraError, OSError) as error:
        print(f"bella: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        # Typer turns Ctrl-C into an exit without a word.
        ended = isinstance(stop, Terminated)
        if ended or isinstance(getattr(stop.__context__, "__cause__", None), KeyboardInterrupt):
            print("bella: stopped.", file=sys.stderr)
        raise
