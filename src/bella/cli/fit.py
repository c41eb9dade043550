"""``bella fit``: a posterior on a user's own images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bella.cli.common import (
    BadImage,
    Classes,
    DataOption,
    Folder,
    Json,
    LeftOut,
    Limit,
    Quiet,
    given,
    hush,
    listed,
    parse_columns,
    parse_options,
    print_figures,
    print_json,
    stopping,
)

EVENTS = "tensorboard"
"""The folder of TensorBoard's events within a run's."""


def fit(
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/fit"),
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder with one sub-folder a class, CSV of path,label, a data set's name (`bella "
            "data` lists them) or hf:NAME; of texts a CSV, TSV, JSON lines, parquet, folder of a "
            "data set, hf:NAME or a set's name."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of texts: text, regression, causal-lm or multiple-choice; of questions about "
            "pictures: vqa.",
            show_default="images",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Of texts: ROLE=NAME, such as text=review; repeatable."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens kept of a text.", show_default="256")
    ] = None,
    options_by: Annotated[
        str | None,
        typer.Option(
            help="Multiple choice scores options by mean, sum or letter.", show_default="mean"
        ),
    ] = None,
    variance: Annotated[
        str | None,
        typer.Option(help="Of a number: learned or example.", show_default="learned"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Of questions about pictures: with <image> and {question}.",
            show_default="the network's",
        ),
    ] = None,
    test_limit: Annotated[
        int | None,
        typer.Option(help="Of questions: so many test questions.", show_default="all"),
    ] = None,
    projector: Annotated[
        str | None,
        typer.Option(help="Of questions: a run, or a file, whose projector to begin with."),
    ] = None,
    projector_epochs: Annotated[
        int | None,
        typer.Option(
            help="Of questions: epochs of the projector alone, before the particles.",
            show_default="1 of a fresh one, else 0",
        ),
    ] = None,
    folder: Folder = None,
    classes: Classes = None,
    left_out: LeftOut = None,
    limit: Limit = None,
    data_option: DataOption = None,
    config: Annotated[Path | None, typer.Option(help="YAML of settings; flags go first.")] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="efficientnet-lite0, vit-s14, hf:NAME, timm:NAME, open_clip:NAME/TAG, a folder, "
            "or package.module:function.",
            show_default="efficientnet-lite0",
        ),
    ] = None,
    quantised: Annotated[
        str | None,
        typer.Option(
            help="Hold the frozen base of a network of transformers as 4bit or 8bit (bitsandbytes) "
            "or int8 (torchao).",
            show_default="as it is",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels.", show_default="the network's")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="low-rank, rank1, ssvi, full or laplace.", show_default="low-rank"),
    ] = None,
    particles: Annotated[
        int | None,
        typer.Option(help="How many.", show_default="5; rank1 4; ssvi and laplace 1"),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Of each low-rank change.", show_default="4")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="The change is (alpha / rank) B A.", show_default="the rank"),
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="Layers to adapt: names, suffixes or regexes, comma between; all-linear or auto.",
            show_default="the network's",
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="Heads start as a probe and train, stay so (frozen), are a copy of the network's, "
            "a CLIP's zero-shot, or reset.",
            show_default="probe",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt of zero-shot heads, {} for the class; repeatable.",
            show_default="a photo of a {}.",
        ),
    ] = None,
    from_adapters: Annotated[
        str | None,
        typer.Option(help="Folders of PEFT adapters to start the particles as, comma between."),
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(
            help="How particles are pooled with readouts of the frozen network: linear, log, none.",
            show_default="linear; none of other methods than low-rank",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Further NAME=VALUE of the method, such as density=0.05; repeatable."),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            help="ensemble, repulsive, svgd or function.",
            show_default="repulsive; ensemble of other methods than low-rank",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Of the posterior; 1 is Bayes.", show_default="1000 of repulsive low-rank, else 1"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="5")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step.", show_default="32")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="At its peak.", show_default="0.001; rank1 1e-4; ssvi 3e-3; full 3e-5"),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a better validation NLL.",
            show_default="no early stop",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, bf16, fp16 (autocast, the frozen base held in it) or auto: bf16 "
            "where the device multiplies it and the first batch agrees.",
            show_default="float32",
        ),
    ] = None,
    base_dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the frozen base: auto, float32 (left as it is), bf16 or fp16.",
            show_default="auto; that of the products",
        ),
    ] = None,
    on_nonfinite: Annotated[
        str | None,
        typer.Option(
            help="stop where a loss, gradient or distance is not finite, or skip and count the "
            "step.",
            show_default="stop",
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between two checkpoints within an epoch.", show_default="after each epoch"
        ),
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="Keep the newest so many.", show_default="1")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to run: cpu, cuda, cuda:1, ...", show_default="the GPU if there is one"
        ),
    ] = None,
    particle_processes: Annotated[
        int | None,
        typer.Option(
            help="Under torchrun: so many processes share out the particles, the sets of them the "
            "examples.",
            show_default="1",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images.", show_default="0")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides every random number.", show_default="0")
    ] = None,
    on_bad_image: Annotated[
        BadImage | None,
        typer.Option(
            help="stop at an image that cannot be read, or skip and count.", show_default="stop"
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write TensorBoard's events to the run's tensorboard/."),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew in a used folder.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a posterior on your own images or texts; again, to continue an interrupted run."""
    hush(quiet)
    from bella.parallel.ranks import leads
    from bella.runs import (
        TextConfig,
        VqaConfig,
        read_config,
        train,
        train_text,
        train_vqa,
    )
    from bella.training.watching import TensorBoard

    flags: dict[str, Any] = given(
        data=data,
        task=task,
        columns=parse_columns(column),
        max_length=max_length,
        options_by=options_by,
        variance=variance,
        prompt=prompt,
        test_limit=test_limit,
        projector=projector,
        projector_epochs=projector_epochs,
        folder=None if folder is None else str(folder),
        classes=listed(classes),
        left_out=listed(left_out),
        limit=limit,
        data_options=parse_options(data_option),
        network=network,
        quantised=quantised,
        image_size=image_size,
        method=method,
        particles=particles,
        rank=rank,
        alpha=alpha,
        target_modules=target_modules.split(",") if target_modules else None,
        head_init=heads,
        templates=template or None,
        mixture=mixture,
        from_adapters=from_adapters.split(",") if from_adapters else None,
        options=parse_options(option),
        on_bad_image=None if on_bad_image is None else on_bad_image.value,
        transport=transport,
        transport_options=None if temperature is None else {"temperature": temperature},
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        precision=precision,
        base_dtype=base_dtype,
        on_nonfinite=on_nonfinite,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        device=device,
        particle_processes=particle_processes,
        workers=workers,
        seed=seed,
    )
    shown = not (json or quiet)
    asked = read_config(config, flags, {"": TextConfig, "vqa": VqaConfig})
    kinds: dict[Any, tuple[Any, str]] = {
        TextConfig: (train_text, "test rows"),
        VqaConfig: (train_vqa, "test questions"),
    }
    run, examples = kinds.get(type(asked), (train, "test images"))
    before = _done(out)
    watch = [TensorBoard(out / EVENTS)] if tensorboard else []
    with stopping(lambda: stopped(out, before, fresh)):
        found = run(
            asked,
            out,
            resume=not fresh,
            progress=shown,
            tell=tell if shown else None,
            watch=watch,
        )
    if not leads():
        return
    if json:
        print_json(found)
    else:
        print_figures(found, examples)
        print(f"The run is in {out}")


def tell(found: Any) -> None:
    """Print what a training begins with."""
    for line in found.lines():
        print(line, file=sys.stderr)
    for warning in found.warnings():
        print(f"Note: {warning}", file=sys.stderr)


def stopped(out: Path, before: tuple[int, int, float], fresh: bool) -> str:
    """What a person reads who stopped a training: what is there, and how to go on."""
    epochs, steps, _ = now = _done(out)
    if not (epochs or steps) or (fresh and now == before):
        left = f"{out} is as it was" if epochs else f"nothing was written to {out}"
        left += f" but {EVENTS}/" if (out / EVENTS).exists() else ""
        return f"stopped before the first step was done: {left}, and the same command begins anew."
    command = "the same command without --fresh" if fresh else "the same command"
    done = [f"{n} {what}{'s' * (n > 1)}" for n, what in ((epochs, "epoch"), (steps, "step")) if n]
    return (
        f"stopped after {' and '.join(done)}: {command} continues a run, and `bella predict {out} "
        f"IMAGES` and `bella evaluate {out} --data FOLDER` work with what it has reached."
    )


def _done(out: Path) -> tuple[int, int, float]:
    """How many epochs a folder's record has, how many steps after them, and when it was written."""
    from bella.errors import BellaError
    from bella.files import read_json

    try:
        record = read_json(out / "run.json")
        written = (out / "run.json").stat().st_mtime
        return len(record["history"]), int(record.get("within", 0)), written
    except (BellaError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return 0, 0, 0.0
