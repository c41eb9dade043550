"""A product as files: CSV for programs and spreadsheets, Markdown for people, JSON for both."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bella.experiments.paper.product import Picture, Product, Sheet, middle_of, spread_of
from bella.files import write_json, write_whole
from bella.report.pictures import save_figure
from bella.report.tables import markdown

FORMAT = 1
"""Of the JSON."""

Made = Mapping[str, Any]
"""How it was made, by name: what a reader needs to make it again."""


def write_product(product: Product, name: str, folder: Path, made: Made) -> list[Path]:
    """Write NAME.csv, NAME.md, NAME.json and pictures as PNG and SVG; returns the paths.

    Args:
        product: what is written.
        name: of the files, without an ending.
        folder: made if missing.
        made: command, settings, machine, date, seconds and the like.

    Raises:
        BellaError: a file cannot be written.
    """
    sheets = {name: product.sheet}
    if product.theirs is not None:
        sheets[f"{name}-paper"] = product.theirs
    sheets |= {f"{name}-{file_name(title)}": sheet for title, sheet in product.more.items()}
    paths = [folder / f"{one}.csv" for one in sheets]
    for path, sheet in zip(paths, sheets.values(), strict=True):
        write_csv(sheet, path)
    for picture in product.pictures:
        stem = picture_name(name, picture)
        drawn = [folder / f"{stem}.{form}" for form in ("png", "svg")]
        save_figure(picture.figure, *drawn)
        paths += drawn
    text = page(product, name, made)
    page_path = folder / f"{name}.md"
    write_whole(page_path, lambda path: path.write_text(text, encoding="utf-8"))
    write_json(folder / f"{name}.json", as_json(product, name, made))
    return [page_path, *paths, folder / f"{name}.json"]


def file_name(title: str) -> str:
    """A title as a part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def picture_name(name: str, picture: Picture) -> str:
    """A picture's file, without an ending."""
    return f"{name}-{picture.name}" if picture.name else name


def write_csv(sheet: Sheet, path: Path) -> None:
    """A table; of several seeds the mean, and their standard deviation in a column of its own."""
    spread = [
        any(spread_of(row[place]) is not None for row in sheet.rows)
        for place in range(len(sheet.columns))
    ]
    head: list[str] = []
    for column, several in zip(sheet.columns, spread, strict=True):
        head += [column.heading, f"{column.heading}, spread"] if several else [column.heading]
    lines = []
    for row in sheet.rows:
        line: list[Any] = []
        for value, several in zip(row, spread, strict=True):
            line += [middle_of(value), spread_of(value)] if several else [middle_of(value)]
        lines.append(["" if value is None else value for value in line])

    def write(unfinished: Path) -> None:
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *lines])

    write_whole(path, write)


def page(product: Product, name: str, made: Made) -> str:
    """The product as Markdown."""
    lines = [f"# {product.title}", "", product.shows, "", *_table(product.sheet)]
    for picture in product.pictures:
        lines += [f"![{picture.alt}]({picture_name(name, picture)}.png)", ""]
    for title, sheet in product.more.items():
        if len(sheet.rows) <= 40:
            lines += [f"## {title}", "", *_table(sheet)]
        else:
            path = f"{name}-{file_name(title)}.csv"
            lines += [f"## {title}", "", f"{len(sheet.rows):,} rows in [{path}]({path}).", ""]
    if product.theirs is not None:
        lines += ["## The paper's own figures", "", *_table(product.theirs)]
    lines += [product.comparable, ""]
    if product.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in product.notes), ""]
    lines += [
        "## How it was made",
        "",
        *(f"- {key}: {_said(value)}" for key, value in made.items()),
    ]
    return "\n".join(lines) + "\n"


def _table(sheet: Sheet) -> list[str]:
    headings = [column.heading for column in sheet.columns]
    return [markdown(headings, sheet.entries(), sheet.words), ""]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(own)}" for name, own in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "none"
    return f"{value}"


def as_json(product: Product, name: str, made: Made) -> dict[str, Any]:
    """What NAME.json holds."""

    def sheet(one: Sheet) -> dict[str, Any]:
        return {"columns": [asdict(column) for column in one.columns], "rows": one.rows}

    return {
        "format": FORMAT,
        "name": name,
        "title": product.title,
        "shows": product.shows,
        **sheet(product.sheet),
        "paper": None if product.theirs is None else sheet(product.theirs),
        "comparable": product.comparable,
        "more": {title: sheet(one) for title, one in product.more.items()},
        "pictures": [
            {"file": f"{picture_name(name, one)}.png", "alt": one.alt} for one in product.pictures
        ],
        "notes": list(product.notes),
        "made": dict(made),
    }
