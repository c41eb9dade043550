"""From which entropy on an answer is for a person: found on examples that were not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bella.data import open_images
from bella.errors import BellaError
from bella.evaluation.abstention import promise
from bella.evaluation.decisions import Part
from bella.runs import TextRun
from bella.runs.texts.opened import joined


def referral(
    run: Any,
    calibrate: str | Path | None = None,
    risk: float | None = None,
    delta: float | None = None,
    above: float | None = None,
) -> tuple[float | None, str]:
    """The entropy in nats from which on an answer is for a person, and what that promises.

    Args:
        run: an opened one.
        calibrate: labelled examples that it was not trained on.
        risk: see `bella.evaluation.abstention.promise`; .05 if it is not given.
        delta: likewise; .1.
        above: such an entropy by itself; it promises nothing.

    Returns:
        ``None`` and nothing where neither is given; ``None`` and a promise where that holds for
        all answers.

    Raises:
        BellaError: both are given, a risk without examples to promise it on, a run without
            classes, or examples that promise nothing.
    """
    if calibrate is None:
        if risk is not None or delta is not None:
            raise BellaError(
                "A risk is promised on labelled examples: name them by calibrate (--calibrate)."
            )
        if above is not None and above != above:
            raise BellaError("The entropy to refer from is no number.")
        return above, ""
    if above is not None:
        raise BellaError("Give calibration examples or an entropy to refer from, not both.")
    risk, delta = 0.05 if risk is None else risk, 0.1 if delta is None else delta
    said, labels = calibration(run, calibrate)
    made = promise(said.probs, labels, said.entropy, risk=risk, delta=delta)
    if not made.kept:
        raise BellaError(
            f"With the {made.examples} examples of {calibrate} no entropy promises {1 - risk:.6g} "
            "right answers: give more examples, or allow a higher risk."
        )
    everything = made.coverage == 1
    sentence = (
        f"{'At' if everything else 'Below it at'} most {100 * risk:.6g}% of the answers are wrong, "
        f"on examples drawn as the {made.examples} of the calibration were (sure to "
        f"{100 * (1 - delta):.6g}%)."
    )
    return (None if everything else made.threshold), sentence


def calibration(run: Any, data: str | Path) -> Part:
    """What the particles say of labelled examples, and their labels.

    Raises:
        BellaError: they cannot be read, or the run has no classes.
    """
    if not isinstance(run, TextRun):
        return run.collect(open_images(data, run.preprocess, run.classes))
    if not run.classes:
        raise BellaError(
            f"Only runs with classes are calibrated, and this one is of task {run.task.name}: "
            "leave it out, or give an entropy to refer from."
        )
    return run.collect(run.tokenised(joined(run.read(data)), labelled=True))
