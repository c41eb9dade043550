"""``bella generate``: answers of a language model, with what its particles think of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bella.cli.common import Device, Json, Quiet, Run, hush, print_json, say

SHOWN = ("prompt", "answer", "log_prob", "entropy", "mutual_information")


def generate(
    run: Run,
    prompts: Annotated[
        Path,
        typer.Argument(
            help="JSONL: a prompt or the messages of a chat a line.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSON lines (.jsonl) or CSV to write.")] = Path(
        "answers.jsonl"
    ),
    network: Annotated[
        str | None,
        typer.Option(help="The network, where the folder does not name it.", show_default=False),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Each particle its own answer.")] = False,
    score: Annotated[
        bool, typer.Option("--score", help="Score the lines' own answers and write none.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are what a user says in a chat.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)] = 64,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw the answers; else the likeliest tokens.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Of --sample.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Of --sample.", min=1)] = None,
    top_p: Annotated[float | None, typer.Option(help="Of --sample.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends an answer; may be given again.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --sample.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.", min=1)] = 8,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answers to prompts, with entropy, mutual information and log-probability of every token."""
    hush(quiet)
    from bella.console import progress_bar, shown_text
    from bella.errors import BellaError
    from bella.runs.rows import check_rows, write_rows
    from bella.runs.writing import open_writer, read_prompts

    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    options: dict[str, Any] = {k: v for k, v in drawn.items() if v is not None}
    if options and not sample:
        raise BellaError(f"--{next(iter(options)).replace('_', '-')} is for --sample: add it.")
    if score and (each or sample):
        raise BellaError("--score writes no answers: leave out --each and --sample.")
    check_rows(out)
    lines = read_prompts(prompts, chat)
    if not score:
        options |= {"max_new_tokens": max_new_tokens, "do_sample": sample}
        options |= {"stop_strings": stop} if stop else {}
    with progress_bar(not (json or quiet)) as bar:
        rows = open_writer(run, network, device=device).answer(
            lines, each=each, given=score, seed=seed, batch_size=batch_size, bar=bar, **options
        )
    write_rows(out, rows)
    if json:
        print_json(rows)
        return
    if not each:
        from rich.console import Console
        from rich.table import Table

        rows.sort(key=lambda row: -row["mutual_information"])
        table = Table(title=f"most disputed of {len(rows)} answers")
        for name in SHOWN:
            table.add_column(name.replace("_", " "), overflow="fold")
        for row in rows[:10]:
            prompt = row.get("prompt") or row["messages"][-1]["content"]
            values = [prompt, *(row[name] for name in SHOWN[1:])]
            table.add_row(*(shown_text(f"{v:.4f}" if isinstance(v, float) else v) for v in values))
        Console().print(table)
    say(f"All are in {out}")
