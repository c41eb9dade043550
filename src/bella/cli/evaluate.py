"""``bella evaluate``: all figures of a run on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bella.cli.common import (
    BadImage,
    Column,
    Corrupt,
    CorruptSize,
    Device,
    Folder,
    Json,
    OnBad,
    OwnCode,
    Precision,
    Quiet,
    Run,
    Severities,
    Workers,
    given,
    hush,
    numbers_of,
    print_figures,
    print_json,
    read_by,
    refuse_alone,
    say,
    words_of,
)


def evaluate(
    run: Run,
    data: Annotated[
        str,
        typer.Option(
            help="Labelled images (folder or CSV), rows of text, or a data set's name: its test "
            "part and its shifts.",
            show_default=False,
        ),
    ],
    folder: Folder = None,
    ood: Annotated[
        list[Path] | None,
        typer.Option(
            help="Images or rows of another kind: folder or CSV; repeatable.", show_default=False
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images or rows that were not trained on: what to refer and which "
            "classes to name is promised by them.",
            show_default=False,
        ),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(help="Share of the answers that may be wrong.", show_default="0.05"),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Probability that such a promise may be wrong.", show_default="0.1"),
    ] = None,
    miss: Annotated[
        float | None,
        typer.Option(
            help="Share of the prediction sets that may lack the right class.", show_default="0.1"
        ),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(help="Prediction sets by lac, aps or raps.", show_default="lac"),
    ] = None,
    corrupt: Corrupt = None,
    severities: Severities = None,
    corrupt_size: CorruptSize = None,
    attack: Annotated[
        str | None, typer.Option(help="fgsm or pgd, through all particles.", show_default=False)
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="The most that a pixel in 0..1 moves, with commas between.",
            show_default="0.001,0.003,0.005,0.01,0.02,0.03",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json and pictures.", show_default=False),
    ] = None,
    column: Column = None,
    on_bad_image: OnBad = BadImage.stop,
    device: Device = None,
    precision: Precision = "float32",
    workers: Workers = 0,
    own_code: OwnCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy, calibration and uncertainty of a run on labelled images or texts.

    And what to do with the uncertainty (--calibrate), and how it fares under corruptions
    (--corrupt) and attacks (--attack).
    """
    hush(quiet)
    refuse_alone("--calibrate", calibrate, risk=risk, delta=delta, miss=miss, sets=sets)
    refuse_alone("--corrupt", corrupt, severities=severities, corrupt_size=corrupt_size)
    refuse_alone("--attack", attack, budgets=budgets)
    from bella.console import progress_bar
    from bella.report.evaluation import say_evaluation, write_evaluation
    from bella.runs import open_run

    more: dict[str, Any] = given(
        corruptions=None if corrupt is None else words_of(corrupt),
        severities=None if severities is None else numbers_of(severities, int, "severities"),
        side=corrupt_size,
        attack=attack,
        budgets=None if budgets is None else numbers_of(budgets, float, "budgets"),
        folder=folder,
        calibrate=calibrate,
        promises=given(risk=risk, delta=delta, miss=miss, score=sets) or None,
    )
    with progress_bar(not (json or quiet)) as bar:
        opened = open_run(
            run, device=device, workers=workers, own_code=own_code, precision=precision
        )
        opened = read_by(opened, column, workers)
        found = opened.evaluate(data, ood, bar, on_bad_image.value, **more)
    if out is not None:
        write_evaluation(found, out)
    if json:
        print_json(found)
        return
    print_figures(
        {name: value for name, value in found.items() if isinstance(value, int | float)},
        str(data),
        found.get("intervals"),
    )
    for sentence in say_evaluation(found):
        say(sentence)
    if out is not None:
        say(f"Everything is in {out}.")
