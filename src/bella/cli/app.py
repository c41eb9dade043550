"""Commands, their flags and their help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bella.errors import BellaError, MissingExtraError
from bella.host import keep_freed_memory

app = typer.Typer(
    help="Turn a pre-trained network into a Bayesian one, and measure what that bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Run = Annotated[Path, typer.Argument(help="Run folder of `bella fit`.")]
OnBad = Annotated[
    str | None,
    typer.Option("--on-bad-image", help="stop at an image that cannot be read, or skip and count."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]


def main() -> None:
    """Run the command line; bad input gives one sentence and exit status 2."""
    keep_freed_memory()
    try:
        app()
    except (BellaError, MissingExtraError, OSError) as error:
        print(f"bella: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("bella: stopped; the same command continues a run.", file=sys.stderr)
        sys.exit(130)


def _said(path: Path) -> str:
    """A path for a line of output, whatever its name is made of."""
    from bella.console import shown_text

    return shown_text(path).plain


def _checked_choice(on_bad_image: str | None) -> Literal["stop", "skip"]:
    if on_bad_image in (None, "stop"):
        return "stop"
    if on_bad_image == "skip":
        return "skip"
    raise BellaError(f"--on-bad-image={on_bad_image!r}: choose stop or skip.")


def _print_json(content: Any) -> None:
    from bella.files import plain

    print(json_module.dumps(plain(content), indent=2))


def _print_figures(found: dict[str, Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from bella.console import shown_text

    table = Table(title=shown_text(title), show_header=False)
    for name, value in found.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        table.add_row(name.replace("_", " "), "-" if value != value else text)
    Console().print(table)


def _print_comparison(results: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from bella.report.tables import rich_table, verdict

    console = Console()
    # A table is worth more whole than wrapped: wider than the terminal if it must be.
    console.width = max(console.width, 180)
    console.print(rich_table(results))
    for said in verdict(results):
        print(f"- {said}")
    print(f"Everything is in {_said(folder)}")


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="elpv or fashion-mnist.")] = "elpv",
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/demo-DATA by default.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train all methods on real images; print the table, write report.md and pictures."""
    from bella.experiments.demo import demo as run

    folder = out or Path("runs") / f"demo-{data}"
    results = run(data, folder=folder, seeds=seeds, progress=not (json or quiet))
    if json:
        _print_json(results)
    else:
        _print_comparison(results, folder)
        print(f"The report is {_said(folder / 'report.md')}")


@app.command()
def fit(
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/fit"),
    data: Annotated[
        str | None, typer.Option(help="Folder with one sub-folder a class, or CSV of path,label.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of settings; flags go first.")] = None,
    network: Annotated[
        str | None, typer.Option(help="efficientnet-lite0, hf:NAME or timm:NAME.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    particles: Annotated[int | None, typer.Option(help="How many; 5 by default.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of each low-rank change; 4 by default.")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="Layers to adapt: names, suffixes or regexes, comma between.")
    ] = None,
    transport: Annotated[
        str | None, typer.Option(help="ensemble, repulsive, svgd or function.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the posterior; 1 is Bayes.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    on_bad_image: OnBad = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew in a used folder.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a posterior on your own images; run it again to continue an interrupted run."""
    from bella.runs import read_config, train

    flags: dict[str, Any] = {
        "data": data,
        "network": network,
        "image_size": image_size,
        "particles": particles,
        "rank": rank,
        "target_modules": target_modules.split(",") if target_modules else None,
        "transport": transport,
        "transport_options": None if temperature is None else {"temperature": temperature},
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "on_bad_image": on_bad_image,
    }
    found = train(read_config(config, flags), out, resume=not fresh, progress=not (json or quiet))
    if json:
        _print_json(found)
    else:
        _print_figures(found, "test images")
        print(f"The run is in {_said(out)}")


@app.command()
def evaluate(
    run: Run,
    data: Annotated[Path, typer.Option(help="Labelled images: folder or CSV.")],
    ood: Annotated[Path | None, typer.Option(help="Folder of images of another kind.")] = None,
    on_bad_image: OnBad = None,
    json: Json = False,
) -> None:
    """Accuracy, calibration and uncertainty of a run on labelled images."""
    from bella.console import progress_bar
    from bella.runs import open_run

    with progress_bar(not json) as bar:
        found = open_run(run).evaluate(data, ood, bar, _checked_choice(on_bad_image))
    if json:
        _print_json(found)
    else:
        _print_figures(found, str(data))


@app.command()
def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files and folders.")],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("predictions.csv"),
    on_bad_image: OnBad = None,
    json: Json = False,
) -> None:
    """Class, probability, entropy, mutual information and rank by uncertainty of each image."""
    from bella.console import progress_bar, shown_text
    from bella.runs import open_run

    with progress_bar(not json) as bar:
        predictions = open_run(run).predict(images, bar, _checked_choice(on_bad_image))
    predictions.write(out)
    if json:
        _print_json(predictions.rows())
        return
    from rich.console import Console
    from rich.table import Table

    rows = sorted(predictions.rows(), key=lambda row: row["rank"])
    table = Table(title=f"least certain of {len(rows)} images")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows[:10]:
        cells = (f"{v:.4f}" if isinstance(v, float) else v for v in row.values())
        table.add_row(*map(shown_text, cells))
    Console().print(table)
    print(f"All are in {_said(out)}")


@app.command()
def compare(
    data: Annotated[
        str,
        typer.Option(
            help="elpv, fashion-mnist, fashion-resnet, fashion-mlp, or your folder or CSV."
        ),
    ] = "elpv",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma between: probe, probe-ensemble, single, ensemble, svgd, lora, "
            "lora-ensemble, bella, bella-svgd, bella-function, vbl, rank1, vi, ssvi, ssvi-0.05, "
            "soup, single+temperature, lora+temperature."
        ),
    ] = "probe,lora,lora+temperature,lora-ensemble,bella",
    network: Annotated[str, typer.Option(help="For your own data.")] = "efficientnet-lite0",
    image_size: Annotated[int | None, typer.Option(help="For your own data.")] = None,
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    epochs: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    out: Annotated[Path, typer.Option(help="Folder.")] = Path("runs/compare"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Methods side by side on the same data, budget and seeds; continues where it stopped."""
    from bella.experiments.compare import compare as run
    from bella.experiments.tasks import TASKS, folder_task, task_named

    task = task_named(data) if data in TASKS else folder_task(data, network, image_size=image_size)
    asked = {"epochs": epochs, "learning_rate": learning_rate}
    results = run(
        task,
        methods.split(","),
        seeds=seeds,
        folder=out,
        progress=not (json or quiet),
        **{name: value for name, value in asked.items() if value is not None},
    )
    if json:
        _print_json(results)
    else:
        _print_comparison(results, out)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    particle: Annotated[
        int | None, typer.Option(help="This particle; the soup of all by default.")
    ] = None,
) -> None:
    """Write one plain network's weights: the soup of all particles, or one of them."""
    from safetensors.torch import save_file

    from bella.files import write_whole
    from bella.runs import open_run

    posterior = open_run(run).posterior
    plain = posterior.soup() if particle is None else posterior.particle(particle)
    state = {name: value.contiguous().clone() for name, value in plain.state_dict().items()}
    write_whole(out, lambda path: save_file(state, path))
    print(f"{_said(out)}: {sum(v.numel() for v in state.values()):,} numbers")


@app.command()
def cost(run: Run, json: Json = False) -> None:
    """Trainable parameters, bytes on disk and peak memory of a run's posterior."""
    from bella.evaluation.cost import cost as count
    from bella.runs import open_run

    found = count(open_run(run).posterior)
    if json:
        _print_json(found)
    else:
        _print_figures(found, str(run))
