"""The default against its controls on several data sets: one table, one family of claims.

    python docs/judged.py runs/judged/elpv runs/judged/fashion-mnist ...

Reads the ``results.json`` of comparisons and writes between the markers of ``judged`` in
docs/results.md. Tests are paired over the seeds, corrected for overlapping splits where each seed
splits the data anew, and Holm's among all claims of all data sets; rows that are not won are shown
like those that are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from update import ROOT, between

from bella.metrics.paired import LEVEL, holm
from bella.report.claims import Claim, difference, made_of
from bella.report.tables import TEST, Column, Results, markdown, read_results

OURS = "bella"
CONTROLS = (
    "lora-ensemble+temperature",
    "single+temperature",
    "lora+temperature",
    "probe+temperature",
    "lora-ensemble+distance",
    "multi-depth+distance",
    "anchors",
    "bella-1",
    "bella+temperature",
)
"""The three that the default has to beat, and what each of its parts adds."""

HEADINGS = ("data", "against", *("NLL", "errors 1-p", "shift S", "ECE", "shifted NLL"))


def asked_of(results: Results) -> dict[str, tuple[Column, bool] | None]:
    """The questions by heading, of the first shift that has each; whether more is better."""
    unscored = results["words"]["unscored"]
    shifts = list(results["shifts"])
    seen = next((name for name in ("shift", "left_out", *shifts) if name in shifts), None)
    scored = next((name for name in shifts if name not in unscored), None)
    return {
        "NLL": (Column(TEST, "nll", "NLL", "{:.3f}"), False),
        "errors 1-p": (Column(TEST, "auroc_errors_confidence", "errors", "{:.3f}"), True),
        "shift S": seen and (Column(seen, "auroc_novelty", seen, "{:.3f}"), True),
        "ECE": (Column(TEST, "ece", "ECE", "{:.3f}"), False),
        "shifted NLL": scored and (Column(scored, "nll", scored, "{:.3f}"), False),
    }


def judged(folders: list[Path]) -> Iterator[tuple[str, str, str, Claim]]:
    """Data, control, heading and claim, as the tests of one data set make them."""
    for folder in folders:
        results = read_results(folder)
        methods = results["methods"]
        for control in CONTROLS:
            if control not in methods or OURS not in methods:
                continue
            for heading, question in asked_of(results).items():
                if question is not None:
                    for claim in made_of(methods[OURS], methods[control], results, [question]):
                        yield results["task"], control, heading, claim


def main(names: list[str]) -> None:
    """Write the table."""
    found = list(judged([Path(name) for name in names]))
    adjusted = holm([claim.test.p for *_, claim in found])
    cells: dict[tuple[str, str], dict[str, str]] = {}
    won = lost = 0
    for (data, control, heading, claim), p in zip(found, adjusted, strict=True):
        claim = replace(claim, p=p)
        mark = ("**", "**") if claim.stands and claim.good else ("", "")
        mark = ("_", "_ (worse)") if claim.stands and not claim.good else mark
        won, lost = won + bool(claim.stands and claim.good), lost + bool(mark[1] == "_ (worse)")
        text = f"{mark[0]}{difference(claim.test)}{mark[1]}, {claim.seeds}, p {claim.p:.2g}"
        cells.setdefault((data, control), {})[heading] = text
    rows = [
        [data, control, *(row.get(heading, "-") for heading in HEADINGS[2:])]
        for (data, control), row in cells.items()
    ]
    said = (
        "Bella minus each control: mean difference over the seeds, its 95% interval, seeds won, p "
        f"by Holm among all {len(found)} claims of the table. In bold what stands for Bella "
        f"(p < {LEVEL}; {won} of {len(found)}), in italics what stands against ({lost})."
    )
    table = markdown(HEADINGS, rows, words=2)
    between(ROOT / "docs" / "results.md", "judged", f"{said}\n\n{table}")


if __name__ == "__main__":
    main(sys.argv[1:])
