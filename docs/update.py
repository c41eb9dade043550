"""Write the tables of README.md and docs/results.md from the results of runs.

make demo && python docs/update.py runs/demo-elpv [runs/demo-fashion-mnist ...]
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from bella.experiments.demo import took
from bella.report.tables import compact_table, markdown_table, verdict
from bella.training.record import read_json

ROOT = Path(__file__).parents[1]
# Without the cells themselves: their licence is not this project's.
PICTURES = ("densities.png", "reliability.png", "distances.png")
COMMANDS = {"elpv": "make demo", "fashion-mnist": "bella demo --data fashion-mnist"}


def between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of ``name`` in a page."""
    pattern = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    content = page.read_text()
    if not pattern.search(content):
        sys.exit(f"{page} has no markers for {name}.")
    page.write_text(pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", content))


def origin(results: dict[str, Any], command: str) -> str:
    """Where a table comes from."""
    parts = ", ".join(f"{name} {count}" for name, count in results["parts"].items())
    return (
        f"`{command}`, seeds 0 to {results['seeds'] - 1}, {results['versions']['machine']}, "
        f"torch {results['versions']['torch']}, {results['date']}{took(results)}. Images: {parts}."
    )


def main(folders: list[str]) -> None:
    """Update both pages."""
    for folder in map(Path, folders):
        results = read_json(folder / "results.json")
        command = COMMANDS.get(results["task"], f"bella compare --data {results['task']}")
        said = "\n".join(f"- {line}" for line in verdict(results))
        text = f"{origin(results, command)}\n\n{markdown_table(results)}\n\n{said}"
        shown = ROOT / "docs" / "pictures" / results["task"]
        for picture in PICTURES:
            if (folder / picture).exists():
                shown.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / picture, shown / picture)
                title = picture.removesuffix(".png")
                text += f"\n\n![{title}](pictures/{results['task']}/{picture})"
        between(ROOT / "docs" / "results.md", results["task"], text)
        if results["task"] == "elpv":
            between(
                ROOT / "README.md",
                "results",
                f"{origin(results, command)}\n\n{compact_table(results)}",
            )


if __name__ == "__main__":
    main(sys.argv[1:] or ["runs/demo-elpv"])
