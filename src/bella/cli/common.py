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
Precision = Annotated[
    str,
    typer.Option(
        help="Of predictions: float32, bf16, fp16, or auto: bf16 where the device multiplies it "
        "and the first batch agrees."
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

Folder = Annotated[
    Path | None, typer.Option(help="Where a data set by name lies.", show_default=False)
]
Classes = Annotated[
    str | None, typer.Option(help="Keep these classes, comma between.", show_default="all")
]
LeftOut = Annotated[
    str | None,
    typer.Option(help="Leave these classes out, comma between; their test images are a shift."),
]
Limit = Annotated[
    int | None,
    typer.Option(help="So many training examples, by class (rounded).", show_default="all"),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(help="Further NAME=VALUE of a data set, such as domain=sketch; repeatable."),
]
Corrupt = Annotated[
    str | None,
    typer.Option(
        help="Corruptions of ImageNet-C to evaluate under: all, or fog, snow, ... with commas "
        "between.",
        show_default=False,
    ),
]
Severities = Annotated[
    str | None,
    typer.Option(help="Of each corruption, with commas between.", show_default="1,2,3,4,5"),
]
CorruptSize = Annotated[
    int | None,
    typer.Option(
        help="Pixels of the shorter side when images are corrupted.", show_default="the network's"
    ),
]

Column = Annotated[
    list[str] | None,
    typer.Option(help="Of texts: ROLE=NAME, such as text=review; repeatable."),
]
TextTask = Annotated[
    str | None,
    typer.Option(help="Of your texts: text or multiple-choice.", show_default="images"),
]
ImageSize = Annotated[
    int | None, typer.Option(help="For data that are no task.", show_default="the network's")
]
TrainDomains = Annotated[
    str | None,
    typer.Option(
        help="Of your own data with domains: those to train on, with commas between; the others "
        "are shifts.",
        show_default=False,
    ),
]
Ood = Annotated[
    list[Path] | None,
    typer.Option(help="Images of another kind: folder or CSV; repeatable.", show_default=False),
]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the data.", show_default="the task's, or 5")
]
BatchSize = Annotated[
    int | None, typer.Option(help="Examples a step.", show_default="the task's, or 32")
]
LearningRate = Annotated[
    float | None, typer.Option(help="At its peak.", show_default="the task's, or 0.001")
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Stop after so many epochs without a better validation NLL.",
        show_default="no early stop",
    ),
]
TrainingPrecision = Annotated[
    str | None,
    typer.Option(
        help="float32, bf16, fp16 (autocast, the frozen base held in it) or auto: bf16 where the "
        "device multiplies it and the first batch agrees.",
        show_default="float32",
    ),
]

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
    """Answer Ctrl-C and SIGTERM inside the block with a sentence that says how to go on, and status
    130 or 143."""
    from bella.errors import Terminated

    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        print(f"bella: {sentence()}", file=sys.stderr)
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def listed(names: str | None) -> list[str] | None:
    """Names with commas between; ``None`` where nothing was given."""
    if names is None:
        return None
    return [name.strip() for name in names.split(",") if name.strip()]


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


def parse_columns(pairs: list[str] | None) -> dict[str, str] | None:
    """``ROLE=NAME`` words as a mapping; names stay as they are written.

    Raises:
        BellaError: a word without ``=``.
    """
    from bella.errors import BellaError

    found = {}
    for pair in pairs or ():
        role, equals, name = pair.partition("=")
        if not equals or not role or not name:
            raise BellaError(f"--column {pair}: write ROLE=NAME, such as text=review.")
        found[role.strip()] = name
    return found or None


def read_by(run: Any, column: list[str] | None, workers: int) -> Any:
    """A run that reads its rows by the columns that ``--column`` names.

    Raises:
        BellaError: a run on something else than texts, or a column for nothing; or a run on texts
            with ``--workers``.
    """
    from bella.errors import BellaError
    from bella.runs import TextRun

    columns, texts = parse_columns(column), isinstance(run, TextRun)
    if texts and workers:
        raise BellaError("--workers read images: leave it out for a run on texts.")
    if columns is None:
        return run
    if not texts:
        raise BellaError("--column is for runs on texts: leave it out.")
    return run.by_columns(columns)


def words_of(text: str) -> list[str]:
    """Words with commas between."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers_of(text: str, kind: type, flag: str) -> list[Any]:
    """Numbers with commas between.

    Raises:
        BellaError: something else is there.
    """
    from bella.errors import BellaError

    try:
        found = [kind(word) for word in words_of(text)]
    except ValueError:
        found = []
    if not found:
        raise BellaError(f"--{flag} {text}: give numbers with commas between.")
    return found


def refuse_alone(needed: str, value: Any, **flags: Any) -> None:
    """Refuse flags that mean nothing without another one.

    Raises:
        BellaError: one is given, and ``needed`` is not.
    """
    from bella.errors import BellaError

    alone = [name for name, flag in flags.items() if flag is not None]
    if value is None and alone:
        raise BellaError(f"--{alone[0].replace('_', '-')} is for {needed}: give both, or neither.")


def say(sentence: str) -> None:
    """Print a line that may hold somebody's names, whatever they are made of."""
    from bella.console import shown_text

    print(shown_text(sentence).plain)


def print_json(content: Any) -> None:
    """Print JSON; NaN becomes null."""
    from bella.files import plain

    print(json_module.dumps(plain(content), indent=2))


def print_figures(
    found: Mapping[str, Any], title: str, intervals: Mapping[str, Any] | None = None
) -> None:
    """Print figures by name, with their intervals if they have some; a dash where there is none."""
    from rich.console import Console
    from rich.table import Table

    from bella.console import shown_text

    table = Table(title=shown_text(title), show_header=False)
    for name, value in found.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        if name in (intervals or {}) and value == value:
            text += " [{:.4f}, {:.4f}]".format(*(intervals or {})[name])
        table.add_row(name.replace("_", " "), "-" if value != value else text)
    Console().print(table)
