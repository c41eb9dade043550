"""Table 9: how alike the particles' changes are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bella.errors import BellaError
from bella.evaluation.similarity import weight_similarities
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Column, Picture, Product, Sheet, Value
from bella.experiments.paper.rows import THEIRS
from bella.experiments.paper.tables.common import PAPER
from bella.files import read_json
from bella.report.pictures import new_figure

Cosines = list[list[float]]
FILE = "similarity.json"

PUBLISHED = Sheet(
    (Column("particle"), *(Column(f"Bella-{i}", form="{:.4f}") for i in range(4))),
    (
        ("Bella-0", 1, 0.0286, 0.0327, 0.0317),
        ("Bella-1", 0.0286, 1, 0.6289, 0.5508),
        ("Bella-2", 0.0327, 0.6289, 1, 0.8047),
        ("Bella-3", 0.0317, 0.5508, 0.8047, 1),
    ),
)
"""Of four runs of LLaVA-1.5-7B."""


def make(setup: Setup, *, answers: str = "") -> Product:
    """Cosines between every two particles of each row, of seed 0.

    Args:
        setup: whose rows to train, where there are no answers.
        answers: folder of `bella compare --task vqa`, or of a run of that task: their particles.

    Raises:
        BellaError: a row of one particle, or one that keeps none.
    """
    found = of_answers(answers) if answers else trained(setup)
    rows: list[list[Value]] = []
    matrices = {}
    for name, (title, cosines) in found.items():
        matrices[title] = cosines
        rows += [[title, THEIRS.get(name, ""), f"{i}", *line] for i, line in enumerate(cosines)]
    most = max(map(len, matrices.values()))
    rows = [[*row, *[None] * (3 + most - len(row))] for row in rows]
    subject = "questions about images" if answers else setup.task.title
    between = {title: sum(map(sum, m)) - len(m) for title, m in matrices.items()}
    means = {t: total / (len(matrices[t]) * (len(matrices[t]) - 1)) for t, total in between.items()}
    said = ", ".join(f"{title} {mean:.3f}" for title, mean in means.items())
    return Product(
        title=f"Table 9: similarity of particles, {subject}",
        shows=(
            "Cosine of the angle between the changes Δ = s B A of every two particles, over all "
            f"adapted layers together (heads do not count). Means over pairs: {said}."
        ),
        sheet=Sheet(
            (
                Column("method"),
                PAPER,
                Column("particle"),
                *(Column(f"{i}", form="{:.4f}") for i in range(most)),
            ),
            rows,
        ),
        theirs=PUBLISHED,
        comparable=(
            "The paper's four are separate runs of another network, of which three share their "
            "start and Bella-0 is the public model; it does not say whether W or Δ is compared. "
            "Particles here start from factors of their own, so that their Δ are nearly at right "
            "angles: that says nothing yet of how differently they answer (see MI and diversity)."
        ),
        pictures=[
            Picture("", f"Cosines between particles; means over pairs: {said}.", draw(matrices))
        ],
        notes=["Seed 0."],
    )


def trained(setup: Setup) -> dict[str, tuple[str, Cosines]]:
    """The title and the cosines of each row that is trained."""
    compared, found = setup.compare(), {}
    for name, title in compared.titles.items():
        cosines = weight_similarities(compared.posterior(name)).tolist()
        if len(cosines) == 1:
            raise BellaError(f"The row {name!r} has one particle: leave it out.")
        found[name] = title, cosines
    return found


def of_answers(answers: str) -> dict[str, tuple[str, Cosines]]:
    """Those that runs on questions about images left beside their answers, by method."""
    folder = Path(answers)
    files = {one.parent.parent.name: one for one in sorted(folder.glob(f"*/seed-0/{FILE}"))}
    if (folder / FILE).exists():
        files = {folder.name: folder / FILE}
    if not files:
        raise BellaError(
            f"{folder} holds no {FILE}, neither of a run nor in METHOD/seed-0 of a comparison: "
            "runs of `bella fit --task vqa` with two particles or more leave one."
        )
    found = {}
    for name, file in files.items():
        cosines = read_json(file).get("similarity")
        if not is_square(cosines):
            raise BellaError(f"{file} holds no square of numbers: fit the run again.")
        found[name] = name, cosines
    return found


def is_square(values: Any) -> bool:
    """Whether these are as many lines of numbers as each line has numbers, two or more."""
    return (
        isinstance(values, list)
        and len(values) > 1
        and all(
            isinstance(line, list)
            and len(line) == len(values)
            and all(isinstance(value, int | float) for value in line)
            for line in values
        )
    )


def draw(matrices: dict[str, Cosines]) -> object:
    """A square a row of the table, dark where two particles are alike."""
    figure, axes = new_figure(3.4 * len(matrices), 3.4, 1, len(matrices))
    for axis, (title, cosines) in zip(axes[0], matrices.items(), strict=True):
        axis.imshow(cosines, cmap="Blues", vmin=-0.2, vmax=1)
        for i, line in enumerate(cosines):
            for j, value in enumerate(line):
                colour = "white" if value > 0.5 else "black"
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="particle", ylabel="particle")
        axis.set_xticks(range(len(cosines)))
        axis.set_yticks(range(len(cosines)))
    return figure


ITEM = Item(
    make=make,
    title="similarity of particles",
    methods=("lora-ensemble", "svgd-bella", "repulsive"),
    data=("elpv",),
    instead="answers",
    train=200,
    others=200,
    cost="1 minute",
)
