"""The default against its controls on several data sets, a family of claims a table.

    python docs/judged.py runs/judged/elpv runs/judged/fashion-mnist ...

Reads the ``results.json`` of comparisons and writes between the markers of ``judged`` in
docs/results.md: first what was run, then the tables. Tests are paired over the seeds, corrected for
what their data share (`bella.metrics.paired`), and Holm's among all claims of a table; what is not
won is shown like what is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from update import ROOT, between

from bella.metrics.paired import LEVEL, holm
from bella.report.claims import Claim, difference, made_of, overlap_of
from bella.report.tables import TEST, Column, Results, markdown, read_results

OURS = "bella"
FAMILIES = {
    "What it has to beat": (
        *("lora-ensemble+temperature", "lora+temperature", "single+temperature"),
        "probe+temperature",
    ),
    "What its parts add": (
        *("bella-1", "anchors", "bella+temperature", "bella-uncoupled", "bella-log"),
        *("lora-ensemble+distance", "multi-depth+distance", "multi-depth+temperature"),
    ),
}
"""Controls by table; each table is one family of claims."""

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


def judged(
    folders: Sequence[Path], controls: Sequence[str]
) -> Iterator[tuple[str, str, str, Claim]]:
    """Data, control, heading and claim, as the tests of one data set make them."""
    for folder in folders:
        results = read_results(folder)
        methods = results["methods"]
        for control in controls:
            if control not in methods or OURS not in methods:
                continue
            for heading, question in asked_of(results).items():
                if question is not None:
                    for claim in made_of(methods[OURS], methods[control], results, [question]):
                        yield results["task"], control, heading, claim


def table(folders: Sequence[Path], title: str, controls: Sequence[str]) -> str:
    """One family of claims, for a page."""
    found = list(judged(folders, controls))
    adjusted = holm([claim.test.p for *_, claim in found])
    cells: dict[tuple[str, str], dict[str, str]] = {}
    won = lost = 0
    for (data, control, heading, claim), p in zip(found, adjusted, strict=True):
        claim = replace(claim, p=p)
        text = f"{difference(claim.test)}, {claim.seeds}, p {claim.p:.2g}"
        if claim.stands:
            text = f"**{text}**" if claim.good else f"_{text}, worse_"
            won, lost = won + claim.good, lost + (not claim.good)
        cells.setdefault((data, control), {})[heading] = text
    rows = [
        [data, control, *(row.get(heading, "-") for heading in HEADINGS[2:])]
        for (data, control), row in cells.items()
    ]
    said = (
        "Bella minus each control: mean difference over the seeds, its 95% interval, seeds won, p "
        f"by Holm among the {len(found)} claims of this table. In bold what stands for Bella "
        f"(p < {LEVEL}; {won} of {len(found)}), in italics what stands against ({lost})."
    )
    return f"**{title}.** {said}\n\n{markdown(HEADINGS, rows, words=2)}"


SPLITS = {
    "each seed": "all data split anew by each seed",
    "training data": "training data drawn anew by each seed, one test part",
    "all seeds": "one split for all seeds",
}


def runs(folders: Sequence[Path]) -> str:
    """What the tables are made of: data, seeds, machine, date."""
    rows = []
    for results in map(read_results, folders):
        parts = ", ".join(f"{name} {count:,}" for name, count in results["parts"].items())
        rows.append(
            [
                *(results["task"], f"{results['seeds']}", parts),
                f"{SPLITS[results['splits']]}; overlap {overlap_of(results):.2f}",
                *(results["versions"]["machine"], results["date"]),
            ]
        )
    return markdown(("data", "seeds", "parts", "split", "machine", "date"), rows, words=6)


def main(names: list[str]) -> None:
    """Write the tables."""
    folders = [Path(name) for name in names]
    made = [table(folders, title, controls) for title, controls in FAMILIES.items()]
    between(ROOT / "docs" / "results.md", "judged", "\n\n".join([runs(folders), *made]))


if __name__ == "__main__":
    main(sys.argv[1:])
