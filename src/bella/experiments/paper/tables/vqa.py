"""Tables 5 and 10: questions about images, by kind of answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bella.errors import BellaError
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value
from bella.experiments.paper.rows import THEIRS
from bella.experiments.paper.tables.common import PAPER
from bella.experiments.paper.votes import systems_of
from bella.metrics.vqa import by_type, judged
from bella.report.charts import Axis
from bella.report.plotted import dots

COLUMNS = (
    Column("entropy of right answers", "nats", "{:.4f}"),
    Column("entropy of wrong answers", "nats", "{:.4f}"),
    Column("accuracy", "%", "{:.2f}"),
    Column("exact match", "%", "{:.2f}"),
)
PUBLISHED = {
    "5": Sheet(
        (Column("questions"), Column("model"), *COLUMNS),
        (
            ("yes/no", "Single base", 0.3336, 0.5920, 91.59, 86.74),
            ("yes/no", "Ensemble Bella", 0.3438, 0.5935, 91.20, 86.21),
            ("yes/no", "SVGD Bella", 0.3245, 0.5950, 92.46, 87.83),
            ("number", "Single base", 0.4148, 0.9911, 58.69, 49.26),
            ("number", "Ensemble Bella", 0.4248, 0.9929, 57.86, 48.68),
            ("number", "SVGD Bella", 0.4059, 0.9816, 60.19, 50.99),
        ),
    ),
    "10": Sheet(
        (Column("questions"), Column("model"), *COLUMNS),
        (
            ("other", "Single base", 0.5782, 1.4826, 70.00, 57.17),
            ("other", "Ensemble Bella", 0.6079, 1.5457, 67.05, 55.26),
            ("other", "SVGD Bella", 0.5359, 1.4602, 68.38, 56.68),
        ),
    ),
}
"""LLaVA-1.5 7B on VQA v2, two members each."""


def table(answers: str | Mapping[str, str], number: str, kinds: Sequence[str]) -> Product:
    """Figures of answers of some kinds, a row a system.

    Args:
        answers: see `systems_of`.
        number: of the table.
        kinds: of answers, see `bella.metrics.vqa.TYPES`.

    Raises:
        BellaError: no answers, or none of these kinds.
    """
    found = {
        name: by_type([{**row, **judged(row["answer"], row["people"])} for row in rows])
        for name, rows in systems_of(answers).items()
    }
    rows: list[list[Value]] = []
    for kind in kinds:
        for name, by_kind in found.items():
            if (own := by_kind.get(kind)) is None:
                continue
            rows.append(
                [
                    kind,
                    name,
                    THEIRS.get(name, ""),
                    own["entropy_correct"],
                    own["entropy_wrong"],
                    100 * own["accuracy"],
                    100 * own["exact_match"],
                    own["questions"],
                    own["mi_correct"],
                    own["mi_wrong"],
                ]
            )
    if not rows:
        have = sorted({kind for by_kind in found.values() for kind in by_kind} - {"all"})
        raise BellaError(
            f"No answer is of the kind {' or '.join(kinds)}: these are {', '.join(have)}."
        )
    dotted = {f"{row[1]}: {row[0]}": [float(row[5])] for row in rows}  # type: ignore[arg-type]
    said = ", ".join(f"{name} {values[0]:.1f}" for name, values in dotted.items())
    return Product(
        title=f"Table {number}: questions about images ({', '.join(kinds)})",
        shows=(
            "Accuracy as VQA counts it (an answer that three of ten people gave is right), exact "
            "match (an accuracy of 1), and the mean over an answer's tokens of the predictive "
            "entropy, where the answer matches exactly and where it does not. Beside the paper: "
            "the mutual information, which one network does not have."
        ),
        sheet=Sheet(
            (
                Column("questions"),
                Column("system"),
                PAPER,
                *COLUMNS,
                Column("number of questions", form="{:,}"),
                Column("MI of right answers", "nats", "{:.4f}"),
                Column("MI of wrong answers", "nats", "{:.4f}"),
            ),
            rows,
        ),
        theirs=PUBLISHED[number],
        comparable=(
            "The paper's network is LLaVA-1.5 7B on VQA v2, its members are four whole runs, and "
            "two of them make a row; its averages are of softmax outputs. On data with one "
            "reference an answer is right or wrong, and accuracy and exact match are one figure."
        ),
        pictures=[
            Picture(
                "",
                f"Accuracy in percent by kind of answer: {said}.",
                dots(dotted, Axis("accuracy (%)")),
            )
        ],
    )


def _item(number: str, kinds: Sequence[str], title: str) -> Item:
    def make(setup: Setup, *, answers: str | Mapping[str, str] = "") -> Product:
        return table(answers, number, kinds)

    return Item(
        make=make,
        title=title,
        takes_data=False,
        trains=False,
        cost="seconds; the answers before",
    )


SHORT = _item("5", ("yes/no", "number"), "questions about images: yes/no and numbers")
OTHER = _item("10", ("other",), "questions about images: all other answers")
