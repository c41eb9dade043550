"""``bella cite``: the BibTeX of what a run uses."""

from __future__ import annotations

from bella.cli.common import Json, Run, print_json


def cite(run: Run, json: Json = False) -> None:
    """BibTeX of exactly the methods that a run uses, each with what it is cited for."""
    from bella.runs.citing import cite as entries_of

    entries = entries_of(run)
    if json:
        print_json(entries)
        return
    for entry in entries:
        print(f"% {entry['why']}\n{entry['bibtex']}\n")
