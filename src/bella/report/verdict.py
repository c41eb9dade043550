"""In words, what the particles bought and what they did not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bella.report.tables import TEST, Column, Results, is_single

PAIRS = (
    ("bella", "ensemble"),
    ("bella", "single+temperature"),
    ("bella", "vbl"),
    ("bella", "lora+temperature"),
    ("bella", "lora-ensemble"),
    ("bella-svgd", "lora-ensemble"),
    ("lora-ensemble", "lora"),
    ("rank1", "single"),
    ("rank1", "single+temperature"),
    ("ssvi", "vi"),
    ("ssvi-0.05", "vi"),
    ("bella", "probe"),
    ("bella", "probe-ensemble"),
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
    words = results["words"]
    for name in results["shifts"]:
        noticing = words["noticing"].get(name, f"noticing the {name}")
        asked += [
            (Column(name, "auroc_entropy", f"{noticing} by entropy (AUROC)", "{:.3f}"), True),
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


def verdict(results: Results) -> list[str]:
    """Each pair in a sentence, and before them what the spread over the seeds knows.

    A difference counts if it is larger than the sum of both spreads over the seeds. What one set of
    weights cannot do (disagree with itself) is not compared.
    """
    if results["seeds"] == 1:
        return ["One seed shows no spread, so no difference can be told from chance: run three."]
    methods = results["methods"]
    said = [
        sentence(results, methods[ours], methods[other])
        for ours, other in PAIRS
        if ours in methods and other in methods
    ]
    return [what_the_spread_knows(results), *said] if said else []


def what_the_spread_knows(results: Results) -> str:
    """Whether the spread is that of other data, or of the training alone."""
    if results["splits"] == "each seed":
        return (
            "Each seed splits the data anew: the spread is that of training and of which images "
            "were drawn."
        )
    return (
        "All seeds share one split of the data: the spread is that of the training alone, and does "
        "not say what other images would show."
    )


def sentence(results: Results, ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """One method against another, over all questions."""
    better: list[str] = []
    worse: list[str] = []
    same: list[str] = []
    for column, more in questions(results):
        a, b = column.of(ours), column.of(other)
        if a is None or b is None or a["mean"] is None or b["mean"] is None:
            continue
        if column.disputes and (is_single(ours) or is_single(other)):
            continue
        margin = (a["spread"] or 0.0) + (b["spread"] or 0.0)
        gain = a["mean"] - b["mean"]
        if abs(gain) <= margin:
            same.append(column.heading)
        else:
            text = f"{column.heading} ({b['mean']:.3f} to {a['mean']:.3f})"
            (better if (gain > 0) == more else worse).append(text)
    parts = [
        f"{label}: {', '.join(group)}"
        for label, group in (("better", better), ("worse", worse), ("within the spread", same))
        if group
    ]
    return f"{ours['title']} against {other['title']}. " + "; ".join(parts) + "."
