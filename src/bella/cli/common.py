"""What commands share: flags, printing, quiet, and how a stop is answered."""

from __future__ import annotations

import json as json_module
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class BadImage(StrEnum):
    """What to do at an image that cannot be read."""

    stop = "stop"
    skip = "skip"


Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Run = Annotated[Path, typer.Argument(help="Run folder of `bella fit`.", show_default=False)]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show no bars, and nothing that other libraries say.")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where to run: cpu, cuda, cuda:1, ...", show_default="the GPU if there is one"
    ),
]
OnBad = Annotated[
    BadImage,
    typer.Option("--on-bad-image", help="stop at an image that cannot be read, or skip and count."),
]
OwnCode = Annotated[
    bool,
    typer.Option(
        "--own-code", help="Call the package.module:function that the run's network is made by."
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that read images.", min=0)]

OTHERS = ("transformers", "huggingface_hub", "timm", "torch", "sklearn", "datasets", "accelerate")
"""Libraries that speak up by themselves."""


def hush(quiet: bool) -> None:
    """Silence what other libraries say, for the rest of the process."""
    if not quiet:
        return
    os.environ |= {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }
    for name in OTHERS:
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
    if "transformers" in sys.modules:  # it has read its environment already
        sys.modules["transformers"].utils.logging.set_verbosity_error()
        sys.modules["transformers"].utils.logging.disable_progress_bar()


@contextmanager
def stopping(sentence: Callable[[], str]) -> Iterator[None]:
    """Answer Ctrl-C inside the block with a sentence that says how to go on, and status 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"bella: {sentence()}", file=sys.stderr)
        raise typer.Exit(130) from None


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def parse_options(pairs: list[str] | None) -> dict[str, Any] | None:
    """``NAME=VALUE`` words as a mapping, their values read as YAML reads them.

    Raises:
        BellaError: a word without ``=``, or a value that is no YAML.
    """
    import yaml

    from bella.errors import BellaError

    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        try:
            found[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise BellaError(f"--option {pair}: write NAME=VALUE, such as density=0.05.")
    return found or None


def say(sentence: str) -> None:
    """Print a line that may hold somebody's names, whatever they are made of."""
    from bella.console import shown_text

    print(shown_text(sentence).plain)


def print_json(content: Any) -> None:
    """Print JSON; NaN becomes null."""
    from bella.files import plain

    print(json_module.dumps(plain(content), indent=2))


def print_figures(found: Mapping[str, Any], title: str) -> None:
    """Print figures by name; a dash where there is none."""
    from rich.console import Console
    from rich.table import Table

    from bella.console import shown_text

    table = Table(title=shown_text(title), show_header=False)
    for name, value in found.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        table.add_row(name.replace("_", " "), "-" if value != value else text)
    Console().print(table)
