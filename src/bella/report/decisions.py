"""In words, what to do with the uncertainty, and where its promises do not hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def say_decisions(found: Mapping[str, Any]) -> list[str]:
    """What `bella.evaluation.decisions.decisions` found, a sentence each."""
    return [*_say_sets(found["sets"]), *_say_referrals(found["referrals"])]


def _percent(share: float) -> str:
    """A share that was asked for, with all digits that it has: 99.5% is not 100%."""
    return f"{100 * share:.6g}%"


def _say_sets(found: Mapping[str, Any]) -> list[str]:
    if "refused" in found:
        return [f"Prediction sets: {found['refused']}"]
    said = [
        f"Prediction sets ({found['score'].upper()}, from {found['examples']} calibration "
        f"examples) hold the right class {_percent(1 - found['miss'])} of the time, on examples "
        "that are drawn as those were."
    ]
    for name, part in found["parts"].items():
        sentence = (
            f"On {name} they hold it {part['coverage']:.1%} of the time, with "
            f"{part['size']:.2f} classes on average ({part['single']:.0%} of them one class"
            + (f", {part['empty']:.0%} none" if part["empty"] else "")
            + ")"
        )
        if part["broken"]:
            sentence += (
                f": below the {part['low']:.1%} that chance allows, so the promise is BROKEN there,"
                " and these are other data than it was made on"
            )
        else:
            sentence += f"; chance allows {part['low']:.1%} to {part['high']:.1%}"
        said.append(sentence + ".")
    return said


def _say_referrals(found: Mapping[str, Any]) -> list[str]:
    if "refused" in found:
        return [f"Referrals: {found['refused']}"]
    right, sure = _percent(1 - found["risk"]), _percent(1 - found["delta"])
    if found["referred"] == 1:
        return [
            f"Referrals: no threshold of entropy promises that the rest is {right} right with "
            f"these {found['examples']} calibration examples; give more, or allow a higher risk."
        ]
    if found["threshold"] == math.inf:
        said = [f"Refer nothing: the answers are at least {right} right"]
    else:
        said = [
            f"Refer {found['referred']:.0%} (entropy of {found['threshold']:.3f} nats and above), "
            f"and the rest is at least {right} right"
        ]
    said[0] += (
        f", on examples drawn as the {found['examples']} of the calibration were (sure to {sure})."
    )
    for name, part in found["parts"].items():
        if not part["answered"]:
            said.append(f"On {name} everything is referred.")
            continue
        sentence = (
            f"On {name} {part['referred']:.0%} are referred, and {1 - part['risk']:.1%} of the "
            f"rest are right ({part['wrong']:.0f} of {part['answered']:.0f} are wrong)"
        )
        if part["broken"]:
            sentence += (
                ": more wrong answers than chance allows, so the promise is BROKEN there, and these"
                " are other data than it was made on"
            )
        said.append(sentence + ".")
    return said
