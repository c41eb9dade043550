"""Write the tables of README.md and docs/results.md from the results of runs.

make demo && python docs/update.py runs/demo-elpv [runs/compare ...]

A folder of a demo goes between the markers of its task, one of a comparison between those of
``TASK-systems``, one of `bella reference` between those of ``reference``. Pages that quote rows of
them (docs/quoted.py) are written anew.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import quoted
from glance import PICTURE as GLANCE
from glance import glance
from shoot import shoot

from bella.experiments.methods import DEMO
from bella.experiments.page import early_stop, stopping_of, told_of, took
from bella.experiments.reference.page import markdown
from bella.experiments.tasks import TASKS, task_named
from bella.files import read_json
from bella.report.tables import compact_table, markdown_table, read_results
from bella.report.verdict import verdict

ROOT = Path(__file__).parents[1]
# Without the cells themselves: their licence is not this project's.
PICTURES = ("densities.png", "reliability.png", "distances.png")


def between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of ``name`` in a page."""
    pattern = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    content = page.read_text()
    if not pattern.search(content):
        sys.exit(f"{page} has no markers for {name}.")
    page.write_text(pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", content))


def origin(results: Mapping[str, Any], command: str) -> str:
    """Where a table comes from."""
    parts = ", ".join(f"{name} {count}" for name, count in results["parts"].items())
    return (
        f"`{command}`, seeds 0 to {results['seeds'] - 1}, {results['versions']['machine']}, "
        f"torch {results['versions']['torch']}, {results['date']}{took(results)}. "
        f"{results['words']['examples'].capitalize()}: {parts}."
    )


def command_of(results: Mapping[str, Any]) -> str:
    """What a reader types to get the table."""
    task, methods = results["task"], tuple(results["methods"])
    if methods == DEMO:
        return "make demo" if task == "elpv" else f"bella demo --data {task}"
    folder = " --folder FOLDER" if "folder" in signature(TASKS[task]).parameters else ""
    asked = results["settings"].get("precision", "float32")
    return (
        f"bella compare --data {task}{folder} --methods {','.join(methods)} "
        f"--seeds {results['seeds']}{'' if asked == 'float32' else f' --precision {asked}'}"
    )


def beside(results: Mapping[str, Any]) -> str:
    """What `bella reference` found, without the title that its own page has."""
    lines = markdown(results).replace("\n## ", "\n### ").splitlines()[2:]
    return "\n".join(["`bella reference`:", "", *lines]).replace("(ref", "(pictures/ref").strip()


def main(folders: list[str]) -> None:
    """Update both pages."""
    for folder in map(Path, folders):
        sampled = read_json(folder / "results.json")
        if "sampler" in sampled:
            between(ROOT / "docs" / "results.md", "reference", beside(sampled))
            shutil.copy(folder / "reference.png", ROOT / "docs" / "pictures" / "reference.png")
            continue
        results = read_results(folder)
        command, demo = command_of(results), tuple(results["methods"]) == DEMO
        said = "\n".join(f"- {line}" for line in verdict(results))
        text = f"{origin(results, command)}\n\n{markdown_table(results)}\n\n{said}".strip()
        shown = ROOT / "docs" / "pictures" / results["task"]
        for picture in PICTURES:
            if (folder / picture).exists():
                shown.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / picture, shown / picture)
                title = picture.removesuffix(".png")
                text += f"\n\n![{title}](pictures/{results['task']}/{picture})"
        if demo:
            shifts = task_named(results["task"]).shifts
            stopped = early_stop(results, shifts, folder, stopping_of(told_of(results)))
            text += f"\n\nStopping early (seed 0, see `report.md`):\n\n{stopped}"
        marker = results["task"] if demo else f"{results['task']}-systems"
        between(ROOT / "docs" / "results.md", marker, text)
        if demo and results["task"] == "elpv":
            between(
                ROOT / "README.md",
                "results",
                f"{origin(results, command)}\n\n{compact_table(results)}",
            )
            GLANCE.write_text(glance(folder), encoding="utf-8")
            if not shoot(folder):
                print(f"docs/pictures/report.png stays: no Chromium, or no {folder}/report.html.")
    quoted.main()


if __name__ == "__main__":
    main(sys.argv[1:] or ["runs/demo-elpv"])
