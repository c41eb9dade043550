"""Anchors: linear readouts of frozen activations, for a mixture to pool particles with.

Multinomial logistic regression with an L2 penalty on everything that arrives at a block, flattened,
on means over tokens or pixels, on a class token, and on several depths side by side. Which of them
and how strong a penalty is validation's to choose; a readout that is chosen may still get hardly
any weight in the pool.

Where an example has more numbers than there are examples, the fit is done among the examples: with
an L2 penalty the weights are a combination of them (representer theorem), and the fit on z with
z zᵀ = x xᵀ is the fit on x. In float64 throughout.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from rich.progress import Progress
from torch import Tensor

from bella.errors import BellaError, require
from bella.prediction.activations import Reading
from bella.prediction.mixture import Readout
from bella.prediction.pool import fit_pool

STRENGTHS = tuple(10 ** (k / 2) for k in range(-1, 7))
"""Inverse strengths of the L2 penalty, of features whose variances sum to 1; from .3 to 1000."""

KEPT = 4
"""Anchors in a mixture where nobody names any: three single depths, and one of several."""

STILL = 1e-4
"""Features whose deviation is a smaller share of their length are the same for all examples."""

TOLERANCE = 1e-5
"""Of the solver's gradient, for features whose variances sum to 1."""


@dataclass(frozen=True, eq=False)
class Activations:
    """What was read of a data set.

    Attributes:
        features: (count, size) by reading, on the CPU.
        labels: (count,).
    """

    features: Mapping[Reading, Float[Tensor, "count size"]]
    labels: Int[Tensor, " count"]

    def select(self, rows: Tensor | Sequence[int]) -> Activations:
        """Those of some examples, by their numbers."""
        rows = torch.as_tensor(rows)
        return Activations({r: x[rows] for r, x in self.features.items()}, self.labels[rows])


@dataclass(frozen=True, eq=False)
class Anchor:
    """A readout, and what it was worth by itself.

    Attributes:
        readout: the classifier.
        strength: inverse of the penalty's, of `STRENGTHS`.
        nll: on validation, after a temperature.
    """

    readout: Readout
    strength: float
    nll: float


def choose_anchors(
    train: Activations,
    validation: Activations,
    classes: int,
    *,
    keep: int = KEPT,
    progress: Progress | None = None,
) -> list[Anchor]:
    """The readouts that validation data like best: of single places, and of several side by side.

    Of each place the pooling that suits it, of these places the best, and the best of several
    depths together: all with one pooling, or the best places. None where all examples look alike.

    Args:
        train: what to fit on.
        validation: what to choose by.
        classes: how many the network has.
        keep: at most so many.
        progress: a display to show a bar in.

    Raises:
        BellaError: a class has no training example, or there is nothing to read.
    """
    if not train.features:
        raise BellaError("There are no activations to read anchors of: pass anchors=().")
    readings = [reading for reading, x in train.features.items() if varies(x)]
    task = progress.add_task("anchors", total=len(readings)) if progress else None

    def fitted(several: Sequence[Reading]) -> Anchor:
        anchor = fit_anchor(several, train, validation, classes)
        if progress and task is not None:
            progress.advance(task)
        return anchor

    of_place: dict[str, Anchor] = {}
    for reading in readings:
        anchor = fitted([reading])
        best = of_place.get(reading.place)
        if best is None or anchor.nll < best.nll:
            of_place[reading.place] = anchor
    single = sorted(of_place.values(), key=lambda anchor: anchor.nll)
    together = {pooling: [r for r in readings if r.pooling == pooling] for pooling in SMALL}
    candidates = [several for several in together.values() if len(several) > 1]
    best_places = [anchor.readout.readings[0] for anchor in single[: keep - 1]]
    if len(best_places) > 1 and sorted(best_places) not in map(sorted, candidates):
        candidates.append(best_places)
    several = sorted(map(fitted, candidates), key=lambda anchor: anchor.nll)[:1]
    if progress and task is not None:
        progress.remove_task(task)
    return [*single[: keep - len(several)], *several]


SMALL = ("mean", "first", "last", "mean-last")
"""Poolings of which many depths may stand side by side."""


def fit_anchor(
    readings: Sequence[Reading],
    train: Activations,
    validation: Activations,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> Anchor:
    """The readout of some readings side by side, of the strength that suits validation data.

    From the strongest penalty on, each fit starts at the one before; it ends where two weaker
    penalties in a row were worse.

    Args:
        readings: whose features stand side by side, each scaled so that its variances sum to 1.
        train: what to fit on.
        validation: what to choose the strength by.
        classes: how many the network has.
        strengths: to choose from, rising.

    Raises:
        BellaError: a class has no training example.
    """
    scales = [scale_of(train.features[reading]) for reading in readings]
    share = len(readings) ** -0.5

    def joined(data: Activations) -> Tensor:
        pairs = zip(readings, scales, strict=True)
        return torch.cat([data.features[r].double() * (share / scale) for r, scale in pairs], 1)

    x, held_out = joined(train), joined(validation)
    best: tuple[float, float, Tensor, Tensor] | None = None
    worse = 0
    for strength, weight, bias in fit_path(x, train.labels, classes, strengths):
        logits = held_out @ weight.mT + bias
        nll = fit_pool([logits.unsqueeze(0)], validation.labels)([logits.unsqueeze(0)]).nll(
            validation.labels
        )
        if best is None or nll < best[0]:
            best, worse = (nll, strength, weight, bias), 0
        else:
            worse += 1
            if worse == 2:
                break
    assert best is not None
    nll, strength, weight, bias = best
    sizes = [train.features[reading].shape[1] for reading in readings]
    back = torch.cat(
        [torch.full((n,), share / s, dtype=x.dtype) for n, s in zip(sizes, scales, strict=True)]
    )
    readout = Readout(tuple(readings), (weight * back).float(), bias.float())
    return Anchor(readout, strength, nll)


def varies(features: Float[Tensor, "count size"]) -> bool:
    """Whether features tell examples apart, by more than rounding: the embedding of a class token
    is the same for all, and a readout would be of its last digits."""
    x = features.double()
    return bool(x.var(0).sum() > STILL**2 * x.square().sum(1).mean())


def scale_of(features: Float[Tensor, "count size"]) -> float:
    """The root of the sum of the features' variances."""
    return float(features.double().var(0).sum().sqrt().clamp_min(1e-12))


def fit_path(
    x: Float[Tensor, "count size"],
    y: Int[Tensor, " count"],
    classes: int,
    strengths: Iterable[float],
) -> Iterable[tuple[float, Float[Tensor, "classes size"], Float[Tensor, " classes"]]]:
    """Logistic regressions for rising strengths, each from the one before.

    min over W, b of strength Σ_n NLL_n + ½ ‖W‖²

    Yields:
        Strength, weights and biases.

    Raises:
        BellaError: a class has no training example.
    """
    linear = require("sklearn.linear_model", "fit")
    errors = require("sklearn.exceptions", "fit")
    absent = sorted(set(range(classes)) - set(y.tolist()))
    if absent:
        raise BellaError(
            f"The training data have no example of class {absent[0]}, which anchors could then not "
            "tell: give some, or pass anchors=()."
        )
    z, back = among_examples(x) if x.shape[1] > len(x) else (x, None)
    model = linear.LogisticRegression(max_iter=1000, tol=TOLERANCE, warm_start=True)
    inputs, labels = z.numpy(), y.numpy()
    for strength in strengths:
        model.C = strength
        with warnings.catch_warnings():
            # A fit of weak penalty that stops early is judged by validation like any other.
            warnings.simplefilter("ignore", errors.ConvergenceWarning)
            model.fit(inputs, labels)
        weight, bias = torch.from_numpy(model.coef_.copy()), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # of two classes scikit-learn gives the difference of their logits
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        yield strength, weight if back is None else weight @ back.mT @ x, bias.clone()


def among_examples(x: Float[Tensor, "count size"]) -> tuple[Tensor, Tensor]:
    """z (count, rank) with z zᵀ = x xᵀ, and what turns weights of z into combinations of x's rows:
    w of z is w backᵀ x of x, so that both say the same of every example."""
    values, vectors = torch.linalg.eigh(x @ x.mT)
    kept = values > values[-1] * 1e-10
    root = values[kept].sqrt()
    return vectors[:, kept] * root, vectors[:, kept] / root
