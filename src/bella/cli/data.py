"""``bella data``: the data sets that are known by name, and what is there of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bella.cli.common import (
    Classes,
    DataOption,
    Folder,
    Json,
    LeftOut,
    Limit,
    Quiet,
    hush,
    listed,
    parse_options,
    print_json,
    say,
)


def data(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A set; or hf:NAME, a folder or a CSV file, to be checked.",
            show_default="all sets",
        ),
    ] = None,
    folder: Folder = None,
    check: Annotated[
        bool, typer.Option("--check", help="Open it, count it, read one example a part.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--every", help="With --check: read every example; slow.")
    ] = False,
    classes: Classes = None,
    left_out: LeftOut = None,
    limit: Limit = None,
    data_option: DataOption = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The data sets that have a name; what one is; and, with --check, what is there of it."""
    hush(quiet)
    from bella.data.sets import SETS

    if name is None:
        found: Any = [summary(dataset) for dataset in SETS.values()]
        print_json(found) if json else print_sets(found)
    elif name in SETS and not any((check, every, folder, classes, left_out, limit, data_option)):
        found = summary(SETS[name])
        print_json(found) if json else print_set(found)
    else:
        from bella.data.checking import check_data

        found = check_data(
            name,
            every=every,
            folder=folder,
            classes=listed(classes) or (),
            left_out=listed(left_out) or (),
            limit=limit,
            options=parse_options(data_option),
        )
        print_json(found) if json else print_found(found)


def summary(dataset: Any) -> dict[str, Any]:
    """A data set in plain values."""
    return {
        "name": dataset.name,
        "title": dataset.title,
        "kind": dataset.kind,
        "about": dataset.about,
        "parts": dict(dataset.parts),
        "options": dataset.options,
        "forms": {form: list(files) for form, files in dataset.forms.items()},
        "place": dataset.place,
        "source": dataset.source,
    }


def print_sets(sets: list[dict[str, Any]]) -> None:
    """Print all sets as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "what", "shifted parts")
    for one in sets:
        table.add_row(one["name"], one["kind"], one["about"], ", ".join(shifts(one)) or "-")
    Console().print(table)
    say("`bella data NAME` says where to get a set, `bella data NAME --folder F --check` what is")
    say("there. hf:NAME is any data set of Hugging Face, a path your own folder or CSV file.")


def shifts(one: dict[str, Any]) -> list[str]:
    """The parts of a set that are shifted."""
    return [part for part in one["parts"] if part not in ("train", "validation", "test")]


def print_set(one: dict[str, Any]) -> None:
    """Print what a set is."""
    say(f"{one['title']} ({one['kind']}): {one['about']}.")
    for part, what in one["parts"].items():
        say(f"  {part}: {what}")
    for option, default in one["options"].items():
        say(f"  --data-option {option}=...  (by default {default!r})")
    for form, files in one["forms"].items():
        few = ", ".join(files[:4]) + (" ..." if len(files) > 4 else "")
        say(f"  read as {form}: {few}")
    say(f"Get it: {one['place']}.")
    say(f"Source: {one['source']}.")


def print_found(found: dict[str, Any]) -> None:
    """Print what is there."""
    classes = found["classes"]
    few = ", ".join(classes[:12]) + (" ..." if len(classes) > 12 else "")
    say(f"{found['data']} ({found['kind']}), {len(classes)} classes: {few}")
    for name, part in found["parts"].items():
        counts = list(part["classes"].values())
        some = f", {min(counts):,} to {max(counts):,} of a class" if any(counts) else ""
        none = f", {part['of no class']:,} of no class" if part["of no class"] else ""
        say(f"  {name}: {part['examples']:,}{some}{none}")
    for note in found["notes"]:
        say(f"Note: {note}")
