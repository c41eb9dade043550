"""``bella table`` and ``bella figure``: those of the paper, on anybody's network and data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bella.cli.common import (
    BatchSize,
    Classes,
    Column,
    Corrupt,
    CorruptSize,
    DataOption,
    Device,
    Epochs,
    Folder,
    ImageSize,
    Json,
    LearningRate,
    LeftOut,
    Ood,
    Patience,
    Quiet,
    Severities,
    TextTask,
    TrainDomains,
    TrainingPrecision,
    given,
    hush,
    listed,
    numbers_of,
    parse_columns,
    parse_options,
    print_json,
    refuse_alone,
    say,
    stopping,
    words_of,
)


class Averages(StrEnum):
    """What rows of particles average."""

    logits = "logits"
    probs = "probs"


def command(kind: str) -> Callable[..., None]:
    """The command of ``table`` or of ``figure``."""

    def run(
        number: Annotated[
            str | None,
            typer.Argument(help="The paper's number, or all.", show_default="lists them"),
        ] = None,
        data: Annotated[
            str | None,
            typer.Option(
                help="A task (see `bella compare --data`), a data set's name, your folder or CSV; "
                "with --task your rows of text. Several with commas between, where it takes them.",
                show_default="its own small one",
            ),
        ] = None,
        task: TextTask = None,
        column: Column = None,
        folder: Folder = None,
        classes: Classes = None,
        left_out: LeftOut = None,
        data_option: DataOption = None,
        network: Annotated[
            str | None,
            typer.Option(help="For your own data.", show_default="efficientnet-lite0"),
        ] = None,
        image_size: ImageSize = None,
        train_domains: TrainDomains = None,
        ood: Ood = None,
        corrupt: Corrupt = None,
        severities: Severities = None,
        corrupt_size: CorruptSize = None,
        methods: Annotated[
            str | None,
            typer.Option(
                help="Comma between: those of `bella compare`, and svgd-bella (the paper's γ), "
                "lora-ensemble-soup, svgd-bella-soup, ensemble-soup, svgd-soup.",
                show_default="the paper's rows and controls",
            ),
        ] = None,
        option: Annotated[
            list[str] | None,
            typer.Option(help="Its own NAME=VALUE, such as particles=[3,5]; repeatable."),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option(
                help="Training examples at most, by class.",
                show_default="few of its own data; all of yours",
            ),
        ] = None,
        test_limit: Annotated[
            int | None,
            typer.Option(
                help="Examples of each other part at most.",
                show_default="few of its own data; all of yours",
            ),
        ] = None,
        average: Annotated[
            Averages,
            typer.Option(help="What rows of particles average: logits, as the paper, or probs."),
        ] = Averages.logits,
        seeds: Annotated[
            int | None, typer.Option(help="Training seeds.", show_default="its own")
        ] = None,
        epochs: Epochs = None,
        batch_size: BatchSize = None,
        learning_rate: LearningRate = None,
        patience: Patience = None,
        precision: TrainingPrecision = None,
        device: Device = None,
        out: Annotated[Path, typer.Option(help="Folder of the files.")] = Path("runs/paper"),
        comparisons: Annotated[
            Path | None,
            typer.Option(help="Folder of the trained rows.", show_default="comparisons/ in --out"),
        ] = None,
        json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        from bella.errors import BellaError, MissingExtraError
        from bella.experiments.paper import KINDS, items_named
        from bella.experiments.paper.running import Asked, fitting, make
        from bella.experiments.tasks.choosing import choose_task

        hush(quiet)
        if number is None:
            print_list(kind, KINDS[kind], json)
            return
        items = items_named(kind, number)
        refuse_alone("--corrupt", corrupt, severities=severities, corrupt_size=corrupt_size)
        how: dict[str, Any] = given(
            folder=folder,
            network=network,
            image_size=image_size,
            task=task,
            columns=parse_columns(column),
            classes=listed(classes),
            left_out=listed(left_out),
            options=parse_options(data_option),
            train_domains=listed(train_domains),
            ood=ood,
            corrupt=listed(corrupt),
            severities=numbers_of(severities, int, "severities") if severities else None,
            corrupt_size=corrupt_size,
        )
        if data is None and how:
            flag = next(iter(how)).replace("_", "-").replace("columns", "column")
            raise BellaError(f"--{flag} is for --data: give both, or neither.")
        asked = Asked(
            comparisons=out / "comparisons" if comparisons is None else comparisons,
            tasks=None if data is None else [choose_task(name, **how) for name in words_of(data)],
            methods=listed(methods),
            seeds=seeds,
            settings=given(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                patience=patience,
                precision=precision,
            ),
            train=limit,
            others=test_limit,
            options=parse_options(option) or {},
            average=average.value,
            progress=not (json or quiet),
            device=device,
        )
        for name in asked.options:
            if len(items) > 1 and not any(name in item.options for item in items.values()):
                raise BellaError(f"No {kind} has an option {name!r}: leave it out.")
        typed = shlex.join(["bella", *sys.argv[1:]])
        found = []
        with stopping(lambda: f"stopped; the same command goes on with what is in {out}."):
            for one, item in items.items():
                try:
                    own = asked if len(items) == 1 else fitting(item, asked)
                    found.append(make(item, f"{kind}-{one}", out, own, typed))
                except (BellaError, MissingExtraError) as error:
                    if len(items) == 1:
                        raise
                    print(f"bella: {kind} {one} is left out: {error}", file=sys.stderr)
                    continue
                if not json:
                    print_made(found[-1], out)
        if json:
            print_json(found if number == "all" else found[0])

    run.__name__ = kind
    run.__doc__ = (
        f"A {kind} of the Bella paper on your network and data; without a number, a list.\n\n"
        "Writes CSV, Markdown, JSON and pictures, with the paper's own numbers beside."
    )
    return run


def print_list(kind: str, items: dict[str, Any], json: bool) -> None:
    """What there is, and what each costs."""
    from rich.console import Console
    from rich.table import Table

    if json:
        about = {
            number: {"title": item.title, "data": item.data, "cost": item.cost}
            for number, item in items.items()
        }
        print_json(about)
        return
    table = Table(title=f"bella {kind} NUMBER: those of the paper", title_justify="left")
    for heading in (kind, "what", "on, where nobody says", "which takes, on one core"):
        table.add_column(heading)
    for number, item in items.items():
        table.add_row(number, item.title, ", ".join(item.data) or "no data", item.cost)
    Console().print(table)
    print(f"`bella {kind} all` makes all of them; --data, --methods, --seeds, ... change what of.")


def print_made(found: dict[str, Any], folder: Path) -> None:
    """A made item: its sheet, and where its files are."""
    from rich.console import Console
    from rich.table import Table

    from bella.console import shown_text
    from bella.experiments.paper.product import Column, Sheet

    sheet = Sheet([Column(**column) for column in found["columns"]], found["rows"])
    console = Console()
    console.width = max(console.width, 160)
    table = Table(title=shown_text(found["title"]), title_justify="left")
    for place, column in enumerate(sheet.columns):
        justify: Any = "left" if place < sheet.words else "right"
        table.add_column(shown_text(column.heading), justify=justify)
    for line in sheet.entries():
        table.add_row(*map(shown_text, line))
    console.print(table)
    say(found["comparable"])
    say(f"Everything is in {folder / found['name']}.md, .csv and .json beside it.")


table = command("table")
figure = command("figure")
