"""The rows of the paper's tables, as methods of the comparison."""

from __future__ import annotations

from dataclasses import replace

from bella.experiments.methods import METHODS, Method
from bella.experiments.methods.derived import Soup
from bella.experiments.methods.low_rank import LowRank
from bella.experiments.methods.probe import Probes
from bella.experiments.methods.trained import Trained, moved

GAMMA = 0.01
"""The paper's strength of the repulsion: T = γ N / n."""


def svgd_bella(gamma: float = GAMMA, name: str = "svgd-bella") -> LowRank:
    """Eq. 4 with its sign mended: own gradients, and repulsion by the paper's γ."""
    row = METHODS["repulsive"]
    assert isinstance(row, LowRank)
    settings = moved("repulsive", gamma=gamma)
    return replace(row, name=name, title=f"SVGD Bella (γ={gamma:g})", settings=settings)


ROWS: dict[str, Method] = {
    row.name: row
    for row in (
        svgd_bella(),
        Soup(name="lora-ensemble-soup", title="soup of the low-rank ensemble", of="lora-ensemble"),
        Soup(name="svgd-bella-soup", title="soup of SVGD Bella", of="svgd-bella"),
        Soup(
            name="ensemble-soup",
            title="soup of the ensemble (all weights)",
            of="ensemble",
            reads_images=True,
        ),
        Soup(name="svgd-soup", title="soup of SVGD (all weights)", of="svgd", reads_images=True),
    )
}
"""Rows that only the paper's tables have."""

THEIRS = {
    "single": "Single base",
    "ensemble": "Ensemble base",
    "svgd": "SVGD base",
    "vbl": "VBL",
    "lora-ensemble": "Ensemble Bella",
    "svgd-bella": "SVGD Bella",
    "ensemble-soup": "Ensemble base soup",
    "svgd-soup": "SVGD base soup",
    "lora-ensemble-soup": "Ensemble Bella soup",
    "svgd-bella-soup": "SVGD Bella soup",
}
"""What the paper calls a row; rows that it lacks are our controls."""

BASIC = ("single", "vbl", "lora-ensemble", "ensemble", "svgd-bella", "svgd")
"""The paper's six rows."""

CONTROLS = ("probe", "lora+temperature", "lora-ensemble+temperature", "bella")
"""What the paper's tables lack: what is cheaper, and the recipe of `bella fit`."""


def averages_logits(method: Method) -> bool:
    """Whether a row is one of particles that count the same, whose logits may be averaged.

    The paper averages logits (section 5.1). Draws of a Gaussian are averaged as probabilities
    (mean logits would be the mode's again), and a fitted pool in its own way.
    """
    if isinstance(method, Trained):
        return method.draws == 1
    return isinstance(method, Probes)


AVERAGING = (
    "Rows of particles average logits, as the paper says that it does (section 5.1); Laplace's "
    "draws and fitted pools (temperature, anchors, Bella) average probabilities."
)
PROBABILITIES = "All rows average probabilities; the paper averages logits (section 5.1)."

CREDIT = (
    "Of the paper's figures: its released code couples particles on one step in twenty, in a way "
    "that is not its Eq. 4, and steps the schedule of the last particle alone; on DomainNet it "
    "takes the best epoch by the test part. So differences of a point or two between its rows are "
    "not evidence for its repulsion."
)
