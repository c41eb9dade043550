"""What a comparison claims: each method against its controls, in paired tests over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bella.metrics.paired import LEVEL, Paired, holm, paired_test
from bella.report.tables import TEST, Column, Results, is_single, markdown

PAIRS = (
    *(
        ("bella", control)
        for control in (
            *("lora-ensemble+temperature", "lora-ensemble+distance", "bella+temperature"),
            *("single+temperature", "lora+temperature"),
            *("probe+temperature", "probe-ensemble+temperature", "probe-ensemble"),
            *("multi-depth+temperature", "multi-depth+distance"),
            *("anchors", "bella-1", "bella-log", "bella-uncoupled"),
            *("ensemble", "vbl", "mola", "lora-ensemble", "probe"),
        )
    ),
    ("repulsive", "lora-ensemble"),
    ("bella-svgd", "lora-ensemble"),
    ("multi-depth", "lora-ensemble"),
    ("mola", "lora-ensemble"),
    ("lora-ensemble", "lora"),
    ("distilled", "repulsive"),
    ("distilled", "lora"),
    ("rank1", "single"),
    ("rank1", "single+temperature"),
    ("ssvi", "vi"),
    ("ssvi-0.05", "vi"),
)
"""Which method is told against which."""

Question = tuple[Column, bool]
"""A figure whose heading is its name in a sentence, and whether more is better."""


def questions(results: Results) -> list[Question]:
    """What a reader wants to know, in the words of the task."""
    asked: list[Question] = [
        (Column(TEST, "accuracy", "accuracy", "{:.3f}"), True),
        (Column(TEST, "nll", "NLL", "{:.3f}"), False),
        (Column(TEST, "ece", "ECE", "{:.3f}"), False),
        (
            Column(
                TEST, "auroc_errors_entropy", "finding its own errors by entropy (AUROC)", "{:.3f}"
            ),
            True,
        ),
    ]
    asked.append(
        (
            Column(TEST, "auroc_errors_confidence", "finding them by 1 - max p (AUROC)", "{:.3f}"),
            True,
        )
    )
    words = results["words"]
    for name in results["shifts"]:
        noticing = words["noticing"].get(name, f"noticing the {name}")
        asked += [
            (Column(name, "auroc_entropy", f"{noticing} by entropy (AUROC)", "{:.3f}"), True),
            (Column(name, "auroc_novelty", f"{noticing} by its own score (AUROC)", "{:.3f}"), True),
            (
                Column(
                    name,
                    "auroc_mi",
                    f"{noticing} by mutual information (AUROC)",
                    "{:.3f}",
                    disputes=True,
                ),
                True,
            ),
        ]
        if name not in words["unscored"]:
            asked.append((Column(name, "nll", f"NLL under the {name}", "{:.3f}"), False))
    return asked


@dataclass(frozen=True)
class Claim:
    """One figure of one method against another's.

    Attributes:
        ours: title of the method that is told of.
        other: of the one that it is told against.
        figure: its name in a sentence.
        means: the two means, ours first.
        test: of their differences, ours minus the other's.
        good: whether the mean difference is to our credit.
        p: of the test, by Holm over all claims of the comparison.
    """

    ours: str
    other: str
    figure: str
    means: tuple[float, float]
    test: Paired
    good: bool
    p: float

    @property
    def stands(self) -> bool:
        """Whether it stands among all others."""
        return self.p < LEVEL

    @property
    def alone(self) -> bool:
        """Whether it would stand if nothing else had been asked."""
        return self.test.p < LEVEL

    @property
    def seeds(self) -> str:
        """On how many seeds ours was the better one, in words."""
        wins = self.test.higher if self.good == (self.test.mean > 0) else self.test.lower
        return f"{wins} of {self.test.pairs}"


def overlap_of(results: Results) -> float:
    """How much the splits of the seeds overlap, for `bella.metrics.paired.paired_test`."""
    if "overlap" in results:
        return float(results["overlap"])
    if results["splits"] != "each seed":  # comparisons of before that was kept
        return 0.0
    return results["parts"]["test"] / results["parts"]["train"]


def claims(results: Results) -> list[Claim]:
    """All that the seeds can tell: each of `PAIRS` in each of its `questions`.

    What one set of weights cannot do (disagree with itself) is not compared, and what fewer than
    two seeds have is not either.
    """
    methods = results["methods"]
    found: list[Claim] = []
    for ours, other in PAIRS:
        if ours in methods and other in methods:
            found += made_of(methods[ours], methods[other], results, questions(results))
    adjusted = holm([claim.test.p for claim in found])
    return [replace(claim, p=p) for claim, p in zip(found, adjusted, strict=True)]


def made_of(
    ours: Mapping[str, Any], other: Mapping[str, Any], results: Results, asked: Sequence[Question]
) -> list[Claim]:
    """What one method's figures say against another's, each claim as if it were the only one.

    Args:
        ours: what ``results`` holds of the method that is told of.
        other: of the one that it is told against.
        results: of the comparison, which says how its splits overlap.
        asked: the questions; one that a method has no figure for is left out.
    """
    found = []
    for column, more in asked:
        a, b = column.of(ours), column.of(other)
        if a is None or b is None or (column.disputes and (is_single(ours) or is_single(other))):
            continue
        pairs = [
            (one, two)
            for one, two in zip(a["values"], b["values"], strict=True)
            if one is not None and two is not None and one == one and two == two
        ]
        if len(pairs) < 2:
            continue
        first, second = zip(*pairs, strict=True)
        test = paired_test(first, second, overlap=overlap_of(results))
        means = sum(first) / len(first), sum(second) / len(second)
        good = (test.mean > 0) == more
        found.append(
            Claim(ours["title"], other["title"], column.heading, means, test, good, test.p)
        )
    return found


HEADINGS = ("", "against", "in", "from", "to", "difference", "seeds won", "p", "p, Holm")


def claim_rows(found: list[Claim]) -> list[list[str]]:
    """The entries of a table of claims, by `HEADINGS`."""
    return [
        [
            claim.ours,
            claim.other,
            claim.figure,
            f"{claim.means[1]:.3f}",
            f"{claim.means[0]:.3f}",
            difference(claim.test),
            claim.seeds,
            f"{claim.test.p:.2g}",
            f"{claim.p:.2g}",
        ]
        for claim in found
    ]


def difference(test: Paired) -> str:
    """The mean difference and its interval; without one where the seeds show no spread."""
    if test.low != test.low:
        return f"{test.mean:+.3f} each time"
    return f"{test.mean:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"


def claims_markdown(results: Results) -> str:
    """All claims as a table for a page; empty where there are none."""
    found = claims(results)
    return markdown(HEADINGS, claim_rows(found), words=3) if found else ""
