"""The predictions that a run of a comparison leaves in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bella.errors import BellaError
from bella.experiments.methods.base import Outputs
from bella.files import write_whole
from bella.prediction.distilled import DirichletPredictive
from bella.prediction.predictive import Average, Predictive

FILE = "predictions.safetensors"

TENSORS = ("logits", "weights", *Predictive.beside)
"""What of a predictive is kept."""

OF_LOGITS = "averages_logits"
"""Marks a predictive that averages logits."""

DIRICHLET = "of_concentrations"
"""Marks one whose logits are log concentrations."""


def read_outputs(place: Path) -> Outputs:
    """The predictions that a run left in its folder.

    Raises:
        BellaError: there are none.
    """
    path = place / FILE
    if not path.exists():
        raise BellaError(f"{place} holds no predictions: run the comparison again.")
    tensors = load_file(path)
    found: dict[str, tuple[Predictive, Tensor]] = {}
    for part in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        own = {
            name: x
            for field in TENSORS
            if (x := tensors.get(name := f"{part}.{field}")) is not None
        }
        beside: dict[str, Any] = {name.rpartition(".")[2]: x for name, x in own.items()}
        average: Average = "logits" if f"{part}.{OF_LOGITS}" in tensors else "probs"
        kind = DirichletPredictive if f"{part}.{DIRICHLET}" in tensors else Predictive
        found[part] = (kind(average=average, **beside), tensors[f"{part}.labels"])
    return found


def write_outputs(place: Path, outputs: Outputs) -> None:
    """What `read_outputs` reads."""
    tensors: dict[str, Tensor] = {}
    for part, (predictive, labels) in outputs.items():
        tensors[f"{part}.labels"] = labels.contiguous()
        for field in TENSORS:
            if (value := getattr(predictive, field)) is not None:
                tensors[f"{part}.{field}"] = value.contiguous()
        if predictive.average == "logits":
            tensors[f"{part}.{OF_LOGITS}"] = torch.ones(1)
        if isinstance(predictive, DirichletPredictive):
            tensors[f"{part}.{DIRICHLET}"] = torch.ones(1)
    write_whole(place / FILE, lambda path: save_file(tensors, path))
