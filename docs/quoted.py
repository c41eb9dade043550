"""Write the rows that pages quote from the tables of docs/results.md, so that none goes stale.

    python docs/quoted.py

A page says what it quotes: the table's name in docs/results.md, rows, and columns.

    <!-- quoted elpv-systems: single LoRA; low-rank ensemble | accuracy; NLL; seconds -->
    <!-- /quoted -->
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bella.report.tables import markdown

DOCS = Path(__file__).parent
RESULTS = DOCS / "results.md"
PLACE = re.compile(
    r"(<!-- quoted (?P<name>[\w-]+): (?P<rows>[^|]*) \| (?P<columns>.*?) -->\n)"
    r".*?(<!-- /quoted -->)",
    re.DOTALL,
)


def cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table_of(results: str, name: str) -> dict[str, dict[str, str]]:
    """A table of docs/results.md: cells by row and column, those of its parts together."""
    part = re.search(rf"<!-- {name}[^>]*-->\n(.*?)<!-- /{name} -->", results, re.DOTALL)
    if part is None:
        sys.exit(f"docs/results.md has no table {name}.")
    found: dict[str, dict[str, str]] = {}
    for head, *lines in re.findall(r"^(\|.*)\n\|:--\|.*\n((?:\|.*\n)+)", part[1], re.MULTILINE):
        for line in lines[0].splitlines():
            row, *values = cells_of(line)
            found.setdefault(row, {}).update(zip(cells_of(head)[1:], values, strict=True))
    return found


def heading_of(results: str, name: str) -> str:
    """The heading that a table stands under."""
    before = results[: results.index(f"<!-- {name}")]
    return re.findall(r"^##+ (.*)$", before, re.MULTILINE)[-1]


def quote(results: str, name: str, rows: list[str], columns: list[str], up: str) -> str:
    """Rows of a table, and where they stand.

    Args:
        results: the text of docs/results.md.
        name: of the table.
        rows: by their titles there.
        columns: by theirs.
        up: the way from the page to docs/, such as ``../``.
    """
    table = table_of(results, name)
    if missing := [row for row in rows if row not in table]:
        sys.exit(f"{name} of docs/results.md has no row {missing}: it has {', '.join(table)}.")
    shown = [[row, *(table[row].get(column, "-") for column in columns)] for row in rows]
    heading = heading_of(results, name)
    anchor = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
    return (
        f"\n{markdown(['', *columns], shown)}\n\n"
        f"From [{heading}]({up}results.md#{anchor}), where command, seeds and machine stand.\n\n"
    )


def updated(page: Path, results: str) -> str:
    """A page with its quotes as the results are."""
    up = "../" * (len(page.relative_to(DOCS).parts) - 1)

    def put(place: re.Match[str]) -> str:
        rows, columns = (
            [word.strip() for word in place[part].split(";")] for part in ("rows", "columns")
        )
        return place[1] + quote(results, place["name"], rows, columns, up) + place[5]

    return PLACE.sub(put, page.read_text(encoding="utf-8"))


def main() -> None:
    """Write all pages."""
    results = RESULTS.read_text(encoding="utf-8")
    for page in sorted(DOCS.rglob("*.md")):
        text = updated(page, results)
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
