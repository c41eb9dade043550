"""The methods of a comparison, one entry each.

A trained method gives a posterior. A derived method makes another predictive of a trained one's
posterior or logits (temperature scaling, soup) and costs no training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bella.errors import BellaError, nearest


@dataclass(frozen=True)
class Method:
    """How one row of the table comes about.

    Attributes:
        name: the word a user types.
        title: the row's heading.
        particles: how many are trained.
        settings: of `bella.fit`, beside the task's.
        build: arguments of `bella.low_rank`, beside the task's.
        of: the trained method that a derived one starts from.
        derive: ``temperature`` or ``soup``; ``probe`` trains on the frozen features instead.
    """

    name: str
    title: str
    particles: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    of: str | None = None
    derive: str | None = None


def _moved(transport: str, **options: Any) -> dict[str, Any]:
    return {"transport": transport, "transport_options": options}


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("probe", "linear probe", derive="probe"),
        Method("probe-ensemble", "ensemble of probes", 5, derive="probe"),
        Method("lora", "single LoRA", 1, _moved("ensemble")),
        Method("lora+temperature", "single + temperature", of="lora", derive="temperature"),
        Method("lora-ensemble", "low-rank ensemble", 5, _moved("ensemble")),
        # T = 1, 100 and 1000 have one validation NLL within its noise (docs/results.md); at T = 1
        # the repulsion is too weak to be seen beside the ensemble.
        Method("bella", "Bella (repulsive)", 5, _moved("repulsive", temperature=100.0)),
        Method("bella-svgd", "Bella (svgd)", 5, _moved("svgd")),
        Method("bella-function", "Bella (function)", 5, _moved("function")),
        Method("soup", "soup of Bella", of="bella", derive="soup"),
    )
}

DEMO = (
    "probe",
    "probe-ensemble",
    "lora",
    "lora+temperature",
    "lora-ensemble",
    "bella",
    "bella-svgd",
    "soup",
)


def methods_named(names: list[str] | tuple[str, ...]) -> list[Method]:
    """Methods by name, with the trained ones that derived ones need, in the order of the table.

    Raises:
        BellaError: an unknown name.
    """
    for name in names:
        if name not in METHODS:
            raise BellaError(
                f"method {name!r} is unknown: near names are {nearest(name, METHODS)}."
            )
    needed = set(names) | {of for name in names if (of := METHODS[name].of) is not None}
    return [method for name, method in METHODS.items() if name in needed]
