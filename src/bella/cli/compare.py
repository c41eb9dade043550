"""``bella compare``: methods side by side."""

from __future__ import annotations

import sys
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
    Limit,
    Ood,
    Patience,
    Quiet,
    Severities,
    TextTask,
    TrainDomains,
    TrainingPrecision,
    Workers,
    given,
    hush,
    listed,
    numbers_of,
    parse_columns,
    parse_options,
    print_json,
    refuse_alone,
    stopping,
    words_of,
)


def compare(
    data: Annotated[
        str,
        typer.Option(
            help="A task: elpv, fashion-mnist, cifar10, cifar10-vit; of texts wordnet, "
            "drug-reviews, wordnet-choice; from scratch fashion-resnet, fashion-mlp, and for a GPU "
            "cifar10-resnet18, cifar10-wrn. Or any data: a set's name (`bella data` lists them), "
            "hf:NAME, your folder or CSV; with --task your rows of text, or a set's."
        ),
    ] = "elpv",
    task: TextTask = None,
    column: Column = None,
    folder: Folder = None,
    classes: Classes = None,
    left_out: LeftOut = None,
    limit: Limit = None,
    data_option: DataOption = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma between. Particles: lora, lora-ensemble, repulsive, bella-svgd, "
            "bella-function, multi-depth, vbl, mola, soup, distilled. The recipe: bella, bella-1, "
            "bella-log, bella-uncoupled, anchors. Without particles: untrained, probe, "
            "probe-ensemble. All weights: single, ensemble, svgd, rank1, vi, ssvi, ssvi-0.05. "
            "Calibrated: "
            "single+temperature, probe+temperature, probe-ensemble+temperature, "
            "lora+temperature, lora-ensemble+temperature, lora-ensemble+distance, "
            "multi-depth+temperature, multi-depth+distance, bella+temperature.",
            show_default="probe, lora+temperature, lora-ensemble+temperature, anchors, bella; of "
            "networks without a head untrained and what needs no readout",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="For your own data.", show_default="efficientnet-lite0; of texts the task's"
        ),
    ] = None,
    image_size: ImageSize = None,
    train_domains: TrainDomains = None,
    ood: Ood = None,
    corrupt: Corrupt = None,
    severities: Severities = None,
    corrupt_size: CorruptSize = None,
    test_limit: Annotated[
        int | None,
        typer.Option(help="With --task vqa: so many test questions.", min=1, show_default="all"),
    ] = None,
    projector_epochs: Annotated[
        int | None,
        typer.Option(
            help="With --task vqa: epochs of the projector alone, before the particles.",
            min=0,
            show_default="1 of a fresh one, else 0",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    patience: Patience = None,
    precision: TrainingPrecision = None,
    device: Device = None,
    workers: Workers = 0,
    out: Annotated[Path, typer.Option(help="Folder.")] = Path("runs/compare"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Methods side by side on the same data, budget and seeds; continues where it stopped.

    Writes results.json, report.html, report.md and pictures.
    """
    hush(quiet)
    refuse_alone("--corrupt", corrupt, severities=severities, corrupt_size=corrupt_size)
    from bella.errors import MissingExtraError
    from bella.experiments.compare import compare as run
    from bella.experiments.material import write_html
    from bella.experiments.methods import usual_methods
    from bella.experiments.page import write_page
    from bella.experiments.tasks.choosing import choose_task

    chosen: dict[str, Any] = given(
        folder=folder,
        network=network,
        image_size=image_size,
        task=task,
        columns=parse_columns(column),
        classes=listed(classes),
        left_out=listed(left_out),
        limit=limit,
        options=parse_options(data_option),
        train_domains=listed(train_domains),
        ood=ood,
        corrupt=listed(corrupt),
        severities=numbers_of(severities, int, "severities") if severities else None,
        corrupt_size=corrupt_size,
    )
    asked = given(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        precision=precision,
    )
    if task == "vqa":
        chosen["data_options"] = chosen.pop("options", None)
        asked |= given(
            test_limit=test_limit, projector_epochs=projector_epochs, workers=workers or None
        )
        answer_questions(data, methods, seeds, out, json, quiet, **given(**chosen), **asked)
        return
    refuse_alone("--task vqa", None, test_limit=test_limit, projector_epochs=projector_epochs)
    subject = choose_task(data, **chosen)
    with stopping(lambda: f"stopped; the same command continues a comparison in {out}."):
        results = run(
            subject,
            usual_methods(subject) if methods is None else methods.split(","),
            seeds=seeds,
            folder=out,
            progress=not (json or quiet),
            device=device,
            workers=workers,
            **asked,
        )
        write_page(subject, results, out)
        try:
            write_html(subject, results, out)
        except MissingExtraError as error:  # all else is there already
            print(f"Note: {error}", file=sys.stderr)
    if json:
        print_json(results)
    else:
        print_comparison(results, out)


def answer_questions(
    data: str, methods: str | None, seeds: int, out: Path, json: bool, quiet: bool, **asked: Any
) -> None:
    """Ways to answer questions about pictures, side by side."""
    from rich.console import Console
    from rich.markdown import Markdown

    from bella.experiments.vqa import USUAL, compare_vqa, page

    asked.pop("task", None)
    if "folder" in asked:
        asked["folder"] = str(asked["folder"])
    with stopping(lambda: f"stopped; the same command continues a comparison in {out}."):
        results = compare_vqa(
            {"data": "easy-vqa" if data == "elpv" else data, **asked},
            USUAL if methods is None else words_of(methods),
            seeds=seeds,
            folder=out,
            progress=not (json or quiet),
        )
    if json:
        print_json(results)
        return
    console = Console()
    console.width = max(console.width, 140)
    console.print(Markdown(page(results)))
    print(f"Everything is in {out}, the answers in {out}/METHOD/seed-K/answers.jsonl")


def print_comparison(results: dict[str, Any], folder: Path) -> None:
    """Print a comparison's table, and in words what it shows."""
    from rich.console import Console

    from bella.report.tables import rich_table
    from bella.report.verdict import verdict

    console = Console()
    # A table is worth more whole than wrapped: wider than the terminal if it must be.
    console.width = max(console.width, 180)
    console.print(rich_table(results))
    for said in verdict(results):
        print(f"- {said}")
    page = next(name for name in ("report.html", "report.md") if (folder / name).exists())
    print(f"Everything is in {folder}, the report in {folder / page}")
