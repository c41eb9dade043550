"""Whether predictions in fewer bits say what those in float32 say.

On one batch the posterior predicts in both. What may differ is the mean over the examples of

    the largest difference of a probability (of a number: of the mean, in standard deviations),
    the difference of entropies, and that of mutual informations (nats),

and each has a bound in `LIMITS`. Rounding to bfloat16 moves them by a tenth of that and less; a
network whose activations leave its range, or whose answer hangs on small differences, does not stay
within.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bella.kernels import device_of
from bella.posterior import Posterior
from bella.precision import Precision, precision_for
from bella.prediction.numbers import GaussianPredictive
from bella.prediction.said import Said

LIMITS = {"predictions": 0.02, "entropy": 0.02, "mutual_information": 0.01}


@dataclass(frozen=True)
class Agreement:
    """How far two predictives of the same examples are apart, as means over the examples.

    Attributes:
        predictions: of probabilities the largest of an example; of numbers in standard deviations.
        entropy: in nats.
        mutual_information: in nats.
    """

    predictions: float
    entropy: float
    mutual_information: float

    @classmethod
    def of(cls, whole: Said, fewer: Said) -> Agreement:
        """Compare what float32 says with what fewer bits say."""
        if isinstance(whole, GaussianPredictive) and isinstance(fewer, GaussianPredictive):
            apart = (whole.mean - fewer.mean).abs() / whole.std
        else:
            apart = (whole.probs - fewer.probs).abs().amax(-1)  # type: ignore[attr-defined]
        return cls(
            apart.mean().item(),
            _apart(whole, fewer, "entropy"),
            _apart(whole, fewer, "mutual_information"),
        )

    @property
    def too_far(self) -> list[str]:
        """Which of them are beyond their bounds; NaN is."""
        return [name for name, value in asdict(self).items() if not value <= LIMITS[name]]

    def sentence(self, name: str, then: str) -> str:
        """What a user reads who asked for fewer bits and had better not."""
        figures = asdict(self)
        said = ", ".join(
            f"{figure.replace('_', ' ')} by {figures[figure]:.3g} (at most {LIMITS[figure]:g})"
            for figure in self.too_far
        )
        return f"On the first batch {name} changes {said}: {then}."


def _apart(whole: Said, fewer: Said, name: str) -> float:
    one: Tensor = getattr(whole, name)
    return (one - getattr(fewer, name)).abs().mean().item()


def decide(
    posterior: Posterior,
    name: str,
    base_dtype: str = "auto",
    run: Callable[[], Said] | None = None,
) -> tuple[Precision, Agreement | None]:
    """The precision that is used where one is asked for.

    Args:
        posterior: where it is to run.
        name: see `bella.precision.Precision`; ``auto`` falls back to float32 where a batch shows
            that fewer bits say something else, and a precision that was named is kept with a
            warning.
        base_dtype: see `bella.precision.Precision`.
        run: predicts a batch; nothing is compared without it.

    Returns:
        The precision, and how far it is from float32 where that was compared.

    Raises:
        BellaError: an unknown name.
    """
    device = device_of(posterior)
    chosen = precision_for(posterior, name, base_dtype)
    if chosen.name == "float32" or run is None or posterior.held.dtype is not None:
        return chosen, None
    with torch.autocast(device.type, enabled=False):
        whole = run()
    with chosen.around(posterior), chosen.autocast():
        found = Agreement.of(whole, run())
    if found.too_far:
        falls = name == "auto"
        then = "it is left at float32" if falls else "precision='auto' would leave it at float32"
        warnings.warn(found.sentence(chosen.name, then), stacklevel=2)
        if falls:
            return Precision("float32", device), found
    return chosen, found
