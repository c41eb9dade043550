"""Rows that pool another row's members: temperature scaling, a distance, anchors, and all of it.

What is fitted on validation (`bella.prediction.pool`) is the same for every row; rows differ in
whom they ask. The row ``bella`` is the recipe, and the others its controls.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import bella
from bella.experiments.methods.base import Costs, Derived, Method, Outputs
from bella.posterior import Posterior
from bella.prediction.mixture import FILE, FORMAT, Mixture, Readout
from bella.prediction.pool import FEWEST, Kind, Pool, cross_fitted, fit_pool
from bella.storage import TENSORS

if TYPE_CHECKING:
    from bella.experiments.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Pooled(Derived):
    """Another row's members as one group, tempered, with more beside them or not.

    Attributes:
        anchors: whether readouts of frozen activations are pooled with them.
        distance: whether what is far from the training data is made doubtful.
        pool: see `bella.prediction.pool`.
        priced: whether the mixture itself is made, kept and timed: where the other row's posterior
            lies on the task's own network.
    """

    anchors: bool = False
    distance: bool = False
    pool: Kind = "linear"
    priced: bool = True

    @property
    def from_scratch(self) -> bool:
        """Logits are logits; but frozen activations are those of a pre-trained network."""
        return not self.reads

    @property
    def reads(self) -> bool:
        """Anchors and distances do."""
        return self.anchors or self.distance

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """With the form of mixtures: an earlier one's distances were others."""
        return super().key(bench, seed) | {"mixture": FORMAT}

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Fit the pool to another run's validation logits, and pool."""
        theirs = bench.outputs_of(self.of, seed)
        costs = bench.costs_of(self.of, seed)
        if self.anchors or self.distance:
            bench.check_readable()
        if self.anchors and len(theirs["validation"][1]) < FEWEST:  # as a run of `bella fit` does
            print(
                f"Note: the validation part has fewer than {FEWEST} examples, too few to pool "
                f"with readouts: the row {self.name} is its particles alone.",
                file=sys.stderr,
            )
            return theirs, costs
        logits = {part: predictive.logits for part, (predictive, _) in theirs.items()}
        readouts = bench.readouts_of(seed) if self.anchors else []
        labels = {part: truth for part, (_, truth) in theirs.items()}
        outputs, pool = pooled(bench, seed, logits, labels, readouts, self.distance, self.pool)
        folder = bench.place(self.of, seed) / "posterior"
        if not (self.priced and (readouts or self.distance) and (folder / TENSORS).exists()):
            return outputs, costs
        costs["seconds_training"] += bench.anchor_seconds[seed] if self.anchors else 0.0
        posterior = bella.load(folder, bench.open(seed).network)
        return outputs, costs | price(bench, seed, posterior, pool, readouts, self.distance, place)


@dataclass(frozen=True, kw_only=True)
class Anchors(Method):
    """The anchors alone: what particles add to them is the difference to the other rows."""

    @property
    def reads(self) -> bool:
        """It reads nothing else."""
        return True

    def key(self, bench: Bench, seed: int) -> dict[str, Any]:
        """See `Pooled`."""
        return super().key(bench, seed) | {"mixture": FORMAT}

    def run(self, bench: Bench, seed: int, place: Path) -> tuple[Outputs, Costs]:
        """Fit and pool."""
        readouts = bench.readouts_of(seed)
        labels = {part: bench.activations(part, seed).labels for part in bench.task.split(seed)}
        outputs, _ = pooled(bench, seed, None, labels, readouts, True, "linear")
        size = sum(readout.weight.numel() + readout.bias.numel() for readout in readouts)
        return outputs, {
            "trainable": size,
            "bytes_on_disk": 4 * size,
            "similarity": math.nan,
            "seconds_training": bench.anchor_seconds[seed],
            "mb_training": math.nan,
            "ms_predicting": math.nan,
        }


def pooled(
    bench: Bench,
    seed: int,
    logits: dict[str, Tensor] | None,
    labels: dict[str, Tensor],
    readouts: list[Readout],
    distance: bool,
    kind: Kind,
) -> tuple[Outputs, Pool]:
    """What the pool says of each part, and the pool; of the validation part what pools say that
    did not see the example."""
    parts = [part for part in bench.task.split(seed) if part != "train"]
    groups: dict[str, list[Tensor]] = {}
    far: dict[str, Tensor | None] = {}
    for part in parts:
        features = dict(bench.activations(part, seed).features) if readouts or distance else {}
        said = [] if logits is None else [logits[part]]
        groups[part] = [*said, *(readout(features) for readout in readouts)]
        distances = bench.distances_of(seed) if distance else []
        far[part] = torch.stack([d(features) for d in distances]) if distances else None
    truth = labels["validation"]
    pool = fit_pool(groups["validation"], truth, kind=kind, distances=far["validation"])
    outputs = {part: (pool(groups[part], far[part]), labels[part]) for part in parts}
    honest = cross_fitted(groups["validation"], truth, kind=kind, distances=far["validation"])
    return {**outputs, "validation": (honest, truth)}, pool


def price(
    bench: Bench,
    seed: int,
    posterior: Posterior,
    pool: Pool,
    readouts: list[Readout],
    distance: bool,
    place: Path,
) -> Costs:
    """What a mixture costs beyond its particles: measured on the mixture itself, which is kept."""
    distances = bench.distances_of(seed) if distance else []
    places = bench.places_of(readouts, distances)
    mixture = Mixture(posterior, pool, readouts, distances, places).to(bench.device)
    mixture.save(place / "posterior")
    size = (place / "posterior" / FILE).stat().st_size
    own = sum(readout.weight.numel() + readout.bias.numel() for readout in readouts)
    base = bella.cost(posterior)
    return {
        "trainable": base["trainable"] + own,
        "bytes_on_disk": base["bytes_on_disk"] + size,
        "ms_predicting": bench.milliseconds(mixture),
    }


def _tempered(of: str, title: str) -> Pooled:
    return Pooled(name=f"{of}+temperature", title=f"{title} + temperature", of=of)


ROWS = (
    _tempered("single", "single"),
    _tempered("probe", "linear probe"),
    _tempered("probe-ensemble", "ensemble of probes"),
    _tempered("lora", "LoRA"),
    _tempered("lora-ensemble", "low-rank ensemble"),
    Pooled(
        name="lora-ensemble+distance",
        title="low-rank ensemble + temperature, distance",
        of="lora-ensemble",
        distance=True,
    ),
    _tempered("multi-depth", "multi-depth heads"),
    Pooled(
        name="multi-depth+distance",
        title="multi-depth heads + temperature, distance",
        of="multi-depth",
        distance=True,
        priced=False,
    ),
    Pooled(name="bella+temperature", title="particles (repulsive) + temperature", of="repulsive"),
    Anchors(name="anchors", title="anchors alone"),
    Pooled(name="bella-1", title="Bella, one particle", of="lora", anchors=True, distance=True),
    Pooled(name="bella", title="Bella", of="repulsive", anchors=True, distance=True),
    Pooled(
        name="bella-log",
        title="Bella, log-linear pool",
        of="repulsive",
        anchors=True,
        distance=True,
        pool="log",
    ),
    Pooled(
        name="bella-uncoupled",
        title="Bella, uncoupled",
        of="lora-ensemble",
        anchors=True,
        distance=True,
    ),
)
