"""Write docs/licences.md: what bella needs, by whom it is licensed.

    python docs/licences.py            # prints what would be written
    python docs/licences.py --write

Licences are those that the packages of this environment say of themselves. What a dependency needs
in its turn is listed with the first extra that brings it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
OURS = "bella-bnn"
NOT_USERS = ("dev", "docs")
"""Extras that users do not install."""

BESIDE = ("quantised", "zoo")
"""Folders of the environment that hold packages apart, as the Makefile makes them."""

INSTEAD = {"opencv-python": "opencv-python-headless"}
"""Packages that are installed here under another name."""

WORDS = (
    ("apache", "Apache-2.0"),
    ("mit", "MIT"),
    ("3-clause", "BSD-3-Clause"),
    ("2-clause", "BSD-2-Clause"),
    ("bsd", "BSD"),
    ("neither the name", "BSD-3-Clause"),  # its third clause, where only the text is there
    ("python software foundation", "PSF-2.0"),
    ("psf", "PSF-2.0"),
    ("mozilla public license 2.0", "MPL-2.0"),
    ("isc", "ISC"),
    ("unlicense", "Unlicense"),
)
"""What licences are called, for packages that do not give an SPDX expression."""


def needs(requirements: list[str] | None) -> list[str]:
    """The packages that requirements name; those under a condition (an extra, another system) are
    left out."""
    found = []
    for line in requirements or ():
        if ";" in line and ("extra" in line or not _holds(line.partition(";")[2])):
            continue
        found.append(named(line))
    return found


def _holds(condition: str) -> bool:
    from packaging.markers import Marker

    return Marker(condition).evaluate()


def named(line: str) -> str:
    """The name in a requirement, as package indices write it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;(]", line.strip(), maxsplit=1)[0]).lower()


def licence(name: str) -> str:
    """By whom a package says that it is licensed, as an SPDX expression where it can be told."""
    said = metadata.metadata(name)
    if expression := said.get("License-Expression"):
        return expression
    classified = [
        line.rpartition(" :: ")[2]
        for line in said.get_all("Classifier") or ()
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    text = " ".join(classified) or (said.get("License") or "").strip().partition("\n")[0]
    if not text:
        files = [file for file in metadata.files(name) or () if "LICEN" in file.name.upper()]
        text = " ".join(files[0].read_text().split()) if files else ""
    for word, spdx in WORDS:
        if re.search(rf"(?<![a-z]){word}(?![a-z])", text.lower()):
            return spdx
    return text[:60] or "not said"


def listed() -> dict[str, list[tuple[str, str]]]:
    """For the core and each extra the packages that it brings first, with their licences."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    seen: set[str] = {OURS}
    found = {}
    sys.path += [str(Path(sys.prefix) / folder) for folder in BESIDE]
    for group in ("the core", *(name for name in extras if name not in NOT_USERS)):
        waiting = needs(project["dependencies"] if group == "the core" else extras[group])
        rows = []
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            try:
                rows.append((name, licence(INSTEAD.get(name, name))))
                waiting += needs(metadata.requires(INSTEAD.get(name, name)))
            except metadata.PackageNotFoundError:
                rows.append((name, "not installed here"))
        found[group] = sorted(rows)
    return found


def page() -> str:
    """The page."""
    lines = [
        "# Licences",
        "",
        "bella is licensed under Apache-2.0 (`LICENSE`). What it needs is not part of it: it comes",
        "from the package index, under the licences that are named here. An extra lists what it",
        "adds to those before it. `python docs/licences.py --write` writes this page.",
        "",
        "| installed with | package | licence |",
        "|---|---|---|",
    ]
    for group, rows in listed().items():
        lines += [f"| {group} | `{name}` | {said} |" for name, said in rows]
    lines += [
        "",
        "Networks and data sets of the demo and of the tables have licences of their own (ELPV's",
        "is for non-commercial use); `bella data NAME` says where each set comes from.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    else:
        print(page(), end="")
