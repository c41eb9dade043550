"""What to do with it: from which uncertainty on to ask a person, and what that promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bella.evaluation.abstention import Promise, fewest, promise, risk_bound
from bella.report.charts import Said
from bella.report.material import Material

BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the examples that a person may be able to look at."""

RISKS = (0.1, 0.05, 0.02, 0.01)
DELTA = 0.1
"""How often a promise may be wrong, over calibrations."""

BROKEN = 0.05
"""As many mistakes have a smaller probability than this where the promise is kept."""


@dataclass(frozen=True)
class Held:
    """What came of a threshold on labelled examples.

    Attributes:
        part: name of the part.
        referred: share of the examples.
        answered: how many were not.
        wrong: how many of the answers.
        broken: whether a promise would show so many in 1 of 20 samples at most, were it kept.
    """

    part: str
    referred: float
    answered: int
    wrong: int
    broken: bool = False

    @property
    def risk(self) -> float | None:
        """Share of wrong answers; ``None`` where none was given."""
        return self.wrong / self.answered if self.answered else None

    @property
    def bound(self) -> float | None:
        """The largest risk that so many leave possible, with probability 1 - `DELTA`."""
        return risk_bound(self.wrong, self.answered, DELTA) if self.answered else None


@dataclass(frozen=True)
class Budget:
    """What a person can look at, and what is left.

    Attributes:
        share: of the examples.
        threshold: of entropy, in nats: this and above is shown to a person. A quantile of the
            validation part, whose labels choose nothing, so that the test part bounds the risk.
        held: what came of it on each labelled part, on ``test`` first.
    """

    share: float
    threshold: float
    held: Sequence[Held]


@dataclass(frozen=True)
class Advice:
    """What to do, for each share that a person can look at, and for each risk that is promised.

    Attributes:
        budgets: by what a person can look at; thresholds from the validation part.
        rows: a promise from the validation part, and what came of it on the other parts.
        refused: risks that cannot be promised because the surest answers hold too many mistakes.
        lacking: risks that so few examples cannot promise, and how many without one mistake could.
        examples: of the validation part.
    """

    budgets: Sequence[Budget]
    rows: Sequence[tuple[Promise, Sequence[Held]]]
    refused: Sequence[float]
    lacking: Mapping[float, int]
    examples: int

    @property
    def best(self) -> Promise | None:
        """The smallest risk at which half or more is answered; else the largest coverage."""
        half = [row for row, _ in self.rows if row.coverage >= 0.5]
        every = [row for row, _ in self.rows]
        return half[-1] if half else max(every, key=lambda row: row.coverage, default=None)

    @property
    def breaks(self) -> list[str]:
        """Parts on which a promise is seen to be broken."""
        return sorted({held.part for _, found in self.rows for held in found if held.broken})


def advice(material: Material) -> Advice | None:
    """Thresholds of entropy from the validation part, and how they did on the others.

    ``None`` where there is no validation part: nothing can be promised then.
    """
    said = material.of_told("validation")
    if said is None:
        return None
    predictive, labels = said
    parts = {"test": material.predictions[material.told]["test"]}
    unscored = material.results["words"]["unscored"]
    for name in material.results["shifts"]:
        other = material.of_told(name)
        if name not in unscored and other is not None and _known(other):
            parts[material.called(name)] = other
    budgets = []
    for share in BUDGETS:
        threshold = float(predictive.entropy.double().quantile(1 - share))
        budgets.append(Budget(share, threshold, [_at(threshold, *part) for part in parts.items()]))
    rows, refused = [], []
    lacking = {risk: count for risk in RISKS if (count := fewest(risk, DELTA)) > len(labels)}
    for risk in RISKS:
        if risk in lacking:
            continue
        made = promise(predictive.probs, labels, predictive.entropy, risk=risk, delta=DELTA)
        if made.kept:
            rows.append((made, [_held(made, *part) for part in parts.items()]))
        else:
            refused.append(risk)
    return Advice(budgets, rows, refused, lacking, len(labels))


def _known(said: Said) -> bool:
    predictive, labels = said
    return bool(((labels >= 0) & (labels < predictive.probs.shape[1])).all())


def _at(threshold: float, part: str, said: Said) -> Held:
    predictive, labels = said
    answered = predictive.entropy.double() < threshold
    wrong = (predictive.predictions != labels)[answered]
    count = int(answered.sum())
    return Held(part, 1 - count / len(labels), count, int(wrong.sum()))


def _held(made: Promise, part: str, said: Said) -> Held:
    predictive, labels = said
    p = made.check(predictive.probs, labels, predictive.entropy)["p"]
    return replace(_at(made.threshold, part, said), broken=p < BROKEN)
