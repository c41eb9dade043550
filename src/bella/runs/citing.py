"""Whom to cite: the papers behind exactly what a run uses.

A line of `USES` is a test of a run and the papers behind what it tests for; their BibTeX stands in
``references.bib``. What a data set wants cited stands in ``bella data NAME``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import bella
from bella.files import read_sealed_json
from bella.prediction.mixture import FILE as MIXTURE
from bella.runs.opened import MODEL
from bella.sealed import read_sealed
from bella.storage import read
from bella.training.settings import read_yaml

CONFIG = "config.yaml"

SOFTWARE = """@software{{bella,
  title = {{bella: {{Bayesian}} networks from pre-trained ones, at the price of a {{LoRA}}}},
  version = {{{version}}},
  url = {{https://pypi.org/project/bella-bnn}}
}}"""


@dataclass(frozen=True)
class Used:
    """What a folder says of itself.

    Attributes:
        kind: of the posterior.
        around: of the posterior that a Laplace approximation lies around, or nothing.
        particles: how many.
        asked: the settings of its training, where it is a run.
        network: its name, or nothing.
        task: of texts, or nothing.
        pool: how particles and readouts are pooled, where they are.
        distance: whether they are pooled with a distance.
    """

    kind: str
    around: str
    particles: int
    asked: Mapping[str, Any]
    network: str
    task: str
    pool: str
    distance: bool

    @property
    def several(self) -> bool:
        """Whether there is anything to couple or to dispute."""
        return self.particles > 1

    def moves_by(self, name: str) -> bool:
        """Whether several particles were moved by a transport of this name."""
        own = self.kind in ("low_rank", "full")  # others come with a distribution of their own
        return own and self.several and self.asked.get("transport") == name

    def transport_has(self, name: str) -> bool:
        """Whether the transport was given an option that is neither nothing nor false."""
        return bool((self.asked.get("transport_options") or {}).get(name))

    def network_is(self, name: str) -> bool:
        """Whether its name has this in it, as a word."""
        return re.search(rf"(^|[^a-z]){name}", self.network.lower()) is not None


DRAWN = ("rank1", "sparse_subspace", "laplace")
"""Kinds whose predictions are of several draws."""

Uses = tuple[str, Callable[[Used], bool], tuple[str, ...]]

USES: tuple[Uses, ...] = (
    ("low-rank particles", lambda u: u.kind == "low_rank" and u.several, ("doan2024bella",)),
    ("low-rank changes", lambda u: "low_rank" in (u.kind, u.around), ("hu2022lora",)),
    ("rank-1 factors", lambda u: u.kind == "rank1", ("dusenberry2020efficient",)),
    ("a sparse Gaussian", lambda u: u.kind == "sparse_subspace", ("li2024training",)),
    (
        "Laplace over low-rank factors",
        lambda u: u.kind == "laplace",
        ("yang2024bayesian", "mackay1992practical"),
    ),
    ("an ensemble", lambda u: u.moves_by("ensemble"), ("lakshminarayanan2017simple",)),
    ("repulsion", lambda u: u.moves_by("repulsive"), ("dangelo2021repulsive",)),
    ("SVGD", lambda u: u.moves_by("svgd"), ("liu2016stein",)),
    (
        "repulsion of predictions",
        lambda u: u.moves_by("function"),
        ("wang2019function", "dangelo2021repulsive"),
    ),
    ("Langevin noise", lambda u: u.transport_has("langevin"), ("welling2011bayesian",)),
    ("scaled gradients", lambda u: u.transport_has("damping"), ("zhang2024riemannian",)),
    (
        "pooling with readouts, calibrated after it",
        lambda u: bool(u.pool),
        ("kumar2022calibrated", "rahaman2021uncertainty"),
    ),
    ("a pool of logarithms", lambda u: u.pool == "log", ("genest1986combining",)),
    ("distance from the training data", lambda u: u.distance, ("sun2022out",)),
    (
        "zero-shot heads",
        lambda u: u.asked.get("head_init") == "zero-shot",
        ("radford2021learning",),
    ),
    ("mutual information", lambda u: u.several or u.kind in DRAWN, ("houlsby2011bayesian",)),
    ("uncertainty of answers", lambda u: u.task == "causal-lm", ("malinin2021uncertainty",)),
    ("options by likelihood", lambda u: u.task == "multiple-choice", ("brown2020language",)),
    ("a learned variance", lambda u: u.task == "regression", ("nix1994estimating",)),
    ("the network", lambda u: u.network_is("efficientnet"), ("tan2019efficientnet",)),
    ("the network", lambda u: u.network_is("smollm2"), ("allal2025smollm2",)),
    ("the network", lambda u: u.network_is("minilm"), ("wang2020minilm", "reimers2019sentence")),
    ("the network", lambda u: u.network_is("clip"), ("radford2021learning",)),
)
"""What for, whether it is in use, and the papers; in the order in which they are printed."""


def cite(folder: str | Path) -> list[dict[str, str]]:
    """The software and the papers behind what a run, or a saved posterior, uses.

    Args:
        folder: of a run, or what `Posterior.save` wrote.

    Returns:
        An entry each: ``key``, ``why`` (what it is cited for) and ``bibtex``.

    Raises:
        BellaError: no posterior there, or a damaged file.
    """
    used = used_by(Path(folder))
    why: dict[str, list[str]] = {}
    for what, applies, keys in USES:
        for key in keys if applies(used) else ():
            why.setdefault(key, []).append(what)
    known = references()
    software = SOFTWARE.format(version=bella.__version__)
    return [{"key": "bella", "why": "this software", "bibtex": software}] + [
        {"key": key, "why": ", ".join(reasons), "bibtex": known[key]}
        for key, reasons in why.items()
    ]


def used_by(folder: Path) -> Used:
    """What a folder says of itself.

    Raises:
        BellaError: no posterior there, or a damaged file.
    """
    saved = read(folder)
    model = read_sealed_json(folder / MODEL) if (folder / MODEL).exists() else {}
    asked = read_yaml(folder / CONFIG) if (folder / CONFIG).exists() else {}
    mixture: Mapping[str, Any] = {}
    if (folder / MIXTURE).exists():
        record, _ = read_sealed(folder / MIXTURE)
        mixture = record or {}
    settings = saved.settings
    around = settings.get("around") or {}
    inner = around.get("settings") or {}
    count = settings.get("particles") or settings.get("components") or inner.get("particles") or 1
    return Used(
        kind=saved.kind,
        around=str(around.get("kind", "")),
        particles=int(count),
        asked=asked,
        network=str(model.get("network", "")),
        task=str(model.get("task", "")),
        pool=str((mixture.get("pool") or {}).get("kind", "linear")) if mixture else "",
        distance=bool(mixture.get("distances")),
    )


def references() -> dict[str, str]:
    """The entries of ``references.bib`` by their keys."""
    text = files("bella.runs").joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text) if entry.strip()]
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in entries}  # type: ignore[index]
