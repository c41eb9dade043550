"""What every kind of run says of itself: what it is asked, and how a pass answers it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from fastapi import APIRouter

from bella.posterior import Posterior
from bella.prediction.mixture import Mixture
from bella.prediction.predictive import Predictive
from bella.serve.guard import RefusedError
from bella.serve.limits import Limits
from bella.serve.line import Line

DIGITS = 9
"""Digits behind the point: more than float32 has."""


class Kind(ABC):
    """One kind of run, opened.

    Args:
        run: the opened run.
        limits: of the service.
        threshold: entropy in nats from which on an answer is for a person; ``None`` for none.

    Attributes:
        name: see `KINDS`.
        alone: whether every example has a pass of its own. Particles that are drawn are drawn for
            each row of a batch, and an answer must not depend on who else asks.
    """

    name: ClassVar[str]

    def __init__(self, run: Any, limits: Limits, threshold: float | None = None):
        self.run = run
        self.limits = limits
        self.threshold = threshold
        self.posterior: Posterior = run.posterior
        self.predicts: Posterior | Mixture = getattr(run, "predicts", run.posterior)
        self.alone = self.posterior.stochastic
        self.device = next(self.posterior.network.parameters()).device
        self._dice = threading.Lock()

    # ------------------------------------------------------------ what a kind says

    @abstractmethod
    def router(self, line: Line) -> APIRouter:
        """Its ways to be asked."""

    @abstractmethod
    def answer(self, items: Sequence[Any], key: Any) -> list[dict[str, Any]]:
        """One pass: an answer an example, as JSON values."""

    @abstractmethod
    def trial(self) -> Any:
        """An example to warm up with."""

    @property
    def about(self) -> dict[str, Any]:
        """What more to say of what is served."""
        return {}

    # ------------------------------------------------------------ what they share

    def passes(self, items: Sequence[Any], key: Any = None) -> list[dict[str, Any]]:
        """Answers to examples, in one pass, or each alone where it has to be."""
        if not self.alone:
            return self.referred(self.answer(items, key))
        with self._dice:  # the generator of random numbers belongs to the process
            return self.referred([row for item in items for row in self.answer([item], key)])

    def referred(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same, with what is for a person."""
        if self.threshold is not None:
            for row in rows:
                row["refer"] = row["entropy"] >= self.threshold
        return rows

    def drawing(self) -> Any:
        """Where particles are drawn, the run's own seed; otherwise nothing is changed."""
        return self.run.drawing() if self.alone else nullcontext()

    def warm_up(self) -> None:
        """One example and two: how they run is proven before anybody waits for it."""
        one = self.trial()
        self.passes([one], self.trial_key)
        self.passes([one, one], self.trial_key)

    trial_key: ClassVar[Any] = None

    def members(self, count: int) -> list[str]:
        """Names of those who say something: particles, their draws, readouts."""
        n = self.posterior.particles
        readouts = [str(r) for r in getattr(self.predicts, "readouts", ())]
        draws = max((count - len(readouts)) // n, 1)
        names = [
            f"particle {particle}" + (f", draw {draw}" if draws > 1 else "")
            for draw in range(1, draws + 1)
            for particle in range(1, n + 1)
        ]
        return [*names, *(f"readout {name}" for name in readouts)]

    def class_rows(self, said: Predictive, classes: Sequence[str]) -> list[dict[str, Any]]:
        """What is said of classes, an answer an example."""
        probs, each = rounded(said.probs), said.particle_probs
        top, best = (x.tolist() for x in each.max(-1))
        names = self.members(len(each))
        columns = {
            "probability": rounded(said.confidence),
            "entropy": rounded(said.entropy),
            "expected_entropy": rounded(said.expected_entropy),
            "mutual_information": rounded(said.mutual_information),
            **({} if said.novelty is None else {"novelty": rounded(said.novelty)}),
        }
        return [
            {
                "class": classes[int(place)],
                **{name: values[i] for name, values in columns.items()},
                "probabilities": dict(zip(classes, probs[i], strict=True)),
                "votes": [
                    {
                        "member": name,
                        "class": classes[best[m][i]],
                        "probability": round(top[m][i], DIGITS),
                    }
                    for m, name in enumerate(names)
                ],
            }
            for i, place in enumerate(said.predictions)
        ]


def rounded(values: torch.Tensor) -> Any:
    """Plain numbers, of any shape."""

    def short(value: Any) -> Any:
        return [short(v) for v in value] if isinstance(value, list) else round(value, DIGITS)

    return short(values.double().tolist())


def check_count(items: Sequence[Any], limits: Limits) -> None:
    """Refuse a request of more examples than a pass takes.

    Raises:
        RefusedError: it is one.
    """
    if len(items) > limits.batch:
        raise RefusedError(
            413, f"{len(items)} examples in one request: at most {limits.batch}, so divide them."
        )


def check_texts(texts: Sequence[str], limits: Limits) -> None:
    """Refuse texts that are too long.

    Raises:
        RefusedError: one is.
    """
    longest = max(map(len, texts), default=0)
    if longest > limits.characters:
        raise RefusedError(
            413, f"A text has {longest:,} characters: at most {limits.characters:,}."
        )
