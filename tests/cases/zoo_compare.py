"""Whether outputs, caches and gradients are what they should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from zoo_oracle import Leaves

TOLERANCE = 1e-5
ROUNDING = 1e-3
"""What is off by less may be float32's rounding (or a ReLU at its corner): float64 decides."""


@dataclass(frozen=True)
class Fault:
    """What is wrong, and by how much of the tensor's size (infinite where that says nothing)."""

    said: str
    size: float = math.inf

    def at(self, place: str) -> Fault:
        return Fault(f"{place}: {self.said}", self.size)


def outputs_differ(found: Leaves, expected: Leaves) -> Fault | None:
    if set(found) != set(expected):
        return Fault(f"outputs {sorted(found)} where {sorted(expected)} were expected")
    for path, value in expected.items():
        if fault := differs(found[path], value):
            return fault.at(f"output {path or 'tensor'}")
    return None


def caches_differ(found: Leaves, expected: Leaves) -> Fault | None:
    """A cache may be left out, and particles and batch may be one axis of it."""
    for path, state in found.items():
        value = expected[path]
        whole = state.numel() == value.numel()
        if fault := differs(state.reshape(value.shape) if whole else state, value):
            return fault.at(f"cache {path}")
    return None


def gradients_differ(found: Leaves, expected: Leaves) -> Fault | None:
    """Measured by the largest gradient of their kind (A or B)."""
    for part in "AB":
        keys = [key for key in expected if key.endswith(f".{part}")]
        largest = max(float(expected[key].abs().max()) for key in keys)
        for key in keys:
            if fault := off(float((found[key] - expected[key]).abs().max()), largest):
                return fault.at(f"gradient of {key}")
    return None


def differs(found: Tensor, expected: Tensor) -> Fault | None:
    found, expected = found.detach(), expected.detach()
    if found.shape != expected.shape:
        return Fault(f"shape {tuple(found.shape)} where {tuple(expected.shape)} was expected")
    if not expected.is_floating_point():
        return None if torch.equal(found, expected) else Fault("other whole numbers")
    if not expected.isfinite().all():
        raise ArithmeticError("the particles alone are not finite: mend the case")
    return off(float((found - expected).abs().max()), float(expected.abs().max()))


def off(distance: float, magnitude: float) -> Fault | None:
    if math.isnan(distance):
        return Fault("NaN")
    size = distance / max(magnitude, TOLERANCE)
    return Fault(f"off by {size:.1e} of its size", size) if size > TOLERANCE else None
