"""A hook of mkdocs: the page of the API reference, from the public names.

The page is made when the site is built and lies in no folder, so it cannot miss a name.
"""

from __future__ import annotations

import importlib
from typing import Any

from mkdocs.structure.files import File, Files

import bella

RECORD = "bella.training.record.Record"
SETTINGS = "bella.training.settings.Settings"
"""What `bella.fit` takes and returns, beside the names in ``bella.__all__``."""


def directive(place: str, heading: str) -> str:
    """What mkdocstrings replaces by an object's docstring."""
    return f"::: {place}\n    options:\n      heading: {heading}\n"


def page() -> str:
    """The reference in Markdown: public names first, then those of each public module."""
    lines = ["# API reference", "", "Every public name is imported from `bella` itself.", ""]
    for name in sorted(bella._PLACES, key=str.lower):
        if name != "checkpoint":  # `recompute` by its old name
            lines.append(directive(f"{bella._PLACES[name]}.{name}", f"bella.{name}"))
    lines += [
        directive(SETTINGS, "Settings of bella.fit"),
        directive(RECORD, "Record of bella.fit"),
    ]
    for name in bella._MODULES:
        lines += [
            f"## bella.{name}",
            "",
            importlib.import_module(f"bella.{name}").__doc__ or "",
            "",
        ]
        module = importlib.import_module(f"bella.{name}")
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if callable(value) and getattr(value, "__module__", "").startswith("bella."):
                place = f"{value.__module__}.{value.__name__}"
                lines.append(
                    directive(place, f"bella.{name}.{public}") + "      heading_level: 3\n"
                )
    return "\n".join(lines)


def on_files(files: Files, config: Any) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "reference.md", content=page()))
    return files
