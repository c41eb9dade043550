"""`bella.mixture`: what is known to beat an ensemble, from a trained posterior and its data.

One pass over the training data and one over the validation data at Δ = 0, beside the particles'
own, give all that is needed: frozen activations to fit readouts on, distances, and logits to fit
the pool to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor

from bella.data.loaders import opened
from bella.errors import BellaError
from bella.inputs import split, to
from bella.kernels import fast_float32
from bella.particles.sober import evaluating
from bella.posterior import Posterior
from bella.prediction.activations import (
    Place,
    Reader,
    Reading,
    find_places,
    mask_of,
    pooled,
    poolings_of,
)
from bella.prediction.mixture import Distance, Mixture, check_pooled
from bella.prediction.pool import Kind, cross_fitted, fit_pool
from bella.prediction.predict import predict
from bella.prediction.predictive import IGNORED, Predictive
from bella.training.anchors import SMALL, Activations, Anchor, choose_anchors, fit_anchor

REFERENCES = 10_000
"""Training examples that a distance is taken to; of more, every so-manieth."""

LARGEST = 2**27
"""Numbers that one reading of all training examples may have: 512 MiB in float32."""

WIDEST = 2**15
"""Numbers that one reading of an example may have."""

Chosen = Literal["auto"] | Sequence[str] | None


def mixture(
    posterior: Posterior,
    train: Any,
    validation: Any,
    *,
    anchors: Chosen = "auto",
    pool: Kind = "linear",
    distance: Chosen = "auto",
    batch_size: int = 32,
    draws: int = 1,
    progress: Progress | None = None,
) -> Mixture:
    """Pool a posterior's particles with readouts of frozen activations; calibrate what they say.

    Readouts of several depths are fitted on the training data and chosen on validation. Each group
    (the particles, and each readout) is tempered, the groups are weighted by expectation-
    maximisation, and what they say together is tempered again. How far an example is from the
    training data, among frozen features, makes the predictive of far ones doubtful, and is the
    score by which they are noticed (`Predictive.novelty`). See `bella.prediction.pool`.

    Args:
        posterior: trained, of any kind and any number of particles. Readouts and distances need a
            frozen base, which `bella.low_rank` and a Laplace posterior around it have.
        train: what it was trained on, as `bella.fit` takes it, without random changes.
        validation: other data of the same kind; nothing else is chosen by.
        anchors: ``auto``; or readings ``PLACE:POOLING``, with a ``+`` between those that stand
            side by side in one readout; or none.
        pool: ``linear``: weighted mean of probabilities; ``log``: of their logarithms.
        distance: ``auto``; or readings; or ``None``.
        batch_size: examples a batch, of data without a loader.
        draws: of a stochastic posterior, for each prediction.
        progress: a display to show bars in.

    Returns:
        What `bella.predict` and `bella.evaluate` take; ``mixture.save(folder)`` keeps it, and
        `bella.load_mixture` reads it. ``mixture.figures`` holds what was chosen, and the NLL on
        validation of pools that did not see the example.

    Source:
        Kumar et al. 2022 (calibrated ensembles of two kinds); Rahaman & Thiery 2020 (temperature
        after pooling); Sun et al. 2022 (nearest neighbours for what is unlike the training data),
        beside what is usual in a place (Breunig et al. 2000).

    Raises:
        BellaError: no frozen base, labels of several positions, batches of one example, a class
            without training examples, or readings that the network does not have.
    """
    said, asked = readings_of(anchors), readings_of(distance)
    around = getattr(posterior, "around", posterior)
    reads = bool(said is None or said or asked is None or asked)
    places: dict[str, Place] = {}
    readings: list[Reading] = []
    with evaluating(posterior), fast_float32(posterior):
        if reads:
            args, kwargs = first_inputs(validation, posterior, batch_size)
            named = [r for group in (*(said or ()), *(asked or ())) for r in group]
            everything = said is None or asked is None
            places = find_places(around, args, kwargs) if everything else {}
            more = [r.place for r in dict.fromkeys(named) if r.place not in places]
            if more:
                places |= find_places(around, args, kwargs, more)
            readings = candidates(around, places, args, kwargs) if everything else []
            readings = list(dict.fromkeys([*readings, *named]))
        reader = Reader(around, places.values())
        seen, _ = gather(reader, readings, train, None, batch_size, draws, progress, "training")
        held_out, logits = gather(
            reader, readings, validation, posterior, batch_size, draws, progress, "validation"
        )
    assert logits is not None
    classes = logits.shape[-1]
    # What was too large, or of several shapes, to be kept is no candidate.
    fit_on = Activations(
        {r: x for r, x in seen.features.items() if r in held_out.features}, seen.labels
    )
    chosen = anchors_of(said, fit_on, held_out, classes, progress)
    readouts = [anchor.readout for anchor in chosen]
    distances = distances_of(asked, fit_on, held_out)
    groups = [logits, *(readout(dict(held_out.features)) for readout in readouts)]
    far = torch.stack([d(dict(held_out.features)) for d in distances]) if distances else None
    fitted = fit_pool(groups, held_out.labels, kind=pool, distances=far)
    honest = cross_fitted(groups, held_out.labels, kind=pool, distances=far)
    figures = {
        "validation_nll": honest.nll(held_out.labels),
        "particles_nll": Predictive(logits).nll(held_out.labels),
        "anchors": {str(a.readout): {"nll": a.nll, "strength": a.strength} for a in chosen},
    }
    used = {r.place for readout in readouts for r in readout.readings}
    used |= {d.reading.place for d in distances}
    kept = [place for name, place in places.items() if name in used]
    made = Mixture(posterior, fitted, readouts, distances, kept, figures)
    return made.to(next(posterior.parameters()).device)


# ------------------------------------------------------------ what is asked for


def readings_of(asked: Chosen) -> list[list[Reading]] | None:
    """Readings from what a caller says; ``None`` for ``auto``.

    Raises:
        BellaError: it is something else.
    """
    if asked is None:
        return []
    if isinstance(asked, str):
        if asked == "auto":
            return None
        raise BellaError(f"{asked!r}: give 'auto', or a list of readings PLACE:POOLING.")
    return [[Reading.parse(part) for part in text.split("+")] for text in asked]


def first_inputs(data: Any, posterior: Posterior, batch_size: int) -> tuple[tuple, dict[str, Any]]:
    """The inputs of the first batch."""
    device = next(posterior.parameters()).device
    for batch in opened(data, batch_size, shuffle=False, what="validation data"):
        args, kwargs, _ = split(batch, posterior.network)
        return to(args, device), to(kwargs, device)
    raise BellaError("There are no validation data, what was given is empty: give some examples.")


def candidates(
    posterior: Posterior, places: dict[str, Place], args: tuple, kwargs: dict[str, Any]
) -> list[Reading]:
    """All poolings of all places that are of a size to be fitted on."""
    arrived, *_ = Reader(posterior, places.values())(args, kwargs)
    mask = mask_of(posterior.network, args, kwargs)
    return [
        Reading(name, pooling)
        for name, x in arrived.items()
        for pooling in poolings_of(x, mask)
        if pooled(x[:1], pooling, None if mask is None else mask[:1]).shape[1] <= WIDEST
    ]


class Gathered:
    """Features of readings, batch by batch; a reading that grows too large or differs in size is
    dropped.

    Args:
        readings: what to keep.
    """

    def __init__(self, readings: Sequence[Reading]):
        self.kept: dict[Reading, list[Tensor]] = {reading: [] for reading in readings}
        self.count = 0

    def add(self, found: Mapping[Reading, Tensor], counted: Tensor) -> None:
        """Keep a batch's features (batch, size) of the examples that count."""
        self.count += int(counted.sum())
        for reading, x in found.items():
            before = self.kept[reading]
            uneven = before and before[0].shape[1:] != x.shape[1:]
            if self.count * x.shape[1] > LARGEST or uneven:
                del self.kept[reading]
            else:
                before.append(x.cpu().float()[counted])

    def whole(self) -> dict[Reading, Tensor]:
        """All batches' features."""
        return {reading: torch.cat(parts) for reading, parts in self.kept.items()}


@torch.no_grad()
def gather(
    reader: Reader,
    readings: Sequence[Reading],
    data: Any,
    posterior: Posterior | None,
    batch_size: int,
    draws: int = 1,
    progress: Progress | None = None,
    what: str = "data",
) -> tuple[Activations, Tensor | None]:
    """Read all data once: the readings' features, labels, and a posterior's logits.

    Args:
        reader: of the places.
        readings: what to keep; one that grows too large or differs in size is dropped.
        data: as `bella.fit` takes them.
        posterior: whose logits (particles, count, classes) to keep as well; ``None`` for none.
        batch_size: examples a batch, of data without a loader.
        draws: of a stochastic posterior.
        progress: a display to show a bar in.
        what: the data's name in messages and bars.

    Raises:
        BellaError: labels that are not one class number for each example.
    """
    device = next(reader.posterior.parameters()).device
    gathered = Gathered(readings)
    labels, logits = [], []
    loader = opened(data, batch_size, shuffle=False, what=f"{what} data")
    total = len(loader) if hasattr(loader, "__len__") else None
    task = progress.add_task(f"activations, {what}", total=total) if progress else None
    for batch in loader if readings or posterior is not None else ():
        args, kwargs, y = split(batch, reader.posterior.network)
        if y.dim() != 1 or y.is_floating_point():
            raise BellaError(
                f"A mixture is for one class number an example, and the {what} labels are "
                f"{y.dtype} of shape {tuple(y.shape)}: predict with the posterior itself."
            )
        args, kwargs = to(args, device), to(kwargs, device)
        counted = y.cpu() != IGNORED
        if gathered.kept:
            found, args, kwargs = reader.features(gathered.kept, args, kwargs)
            gathered.add(found, counted)
        if posterior is not None:
            said = predict(posterior, kwargs or args, draws=draws)
            check_pooled(said)
            logits.append(said.logits.cpu()[:, counted])
        labels.append(y.cpu()[counted].long())
        if progress and task is not None:
            progress.advance(task)
    if progress and task is not None:
        progress.remove_task(task)
    whole = torch.cat(labels) if labels else torch.empty(0, dtype=torch.long)
    return Activations(gathered.whole(), whole), torch.cat(logits, 1) if logits else None


# ------------------------------------------------------------ what is made of it


def anchors_of(
    asked: list[list[Reading]] | None,
    train: Activations,
    validation: Activations,
    classes: int,
    progress: Progress | None = None,
) -> list[Anchor]:
    """The anchors that were asked for; for ``None`` those that validation chooses."""
    if asked is None:
        return choose_anchors(train, validation, classes, progress=progress)
    for reading in (r for group in asked for r in group):
        check_kept(reading, train)
    return [fit_anchor(group, train, validation, classes) for group in asked]


def distances_of(
    asked: list[list[Reading]] | None, train: Activations, validation: Activations
) -> list[Distance]:
    """The distances that were asked for; for ``None`` one at each depth, whose mean is taken.

    Which depth sees a shift is not to be known without the shift: a mean over all depths needs no
    choice, and one that sees nothing costs little.
    """
    if asked is None:
        wanted = preferred(train)
    else:
        wanted = [reading for group in asked for reading in group]
        for reading in wanted:
            check_kept(reading, train)
    every = max(1, -(-len(train.labels) // REFERENCES))
    return [
        Distance.to(reading, train.features[reading][::every], validation.features[reading])
        for reading in wanted
    ]


def preferred(train: Activations) -> list[Reading]:
    """At each place the mean over tokens or pixels, or what arrives where there are none."""
    by_place: dict[str, list[Reading]] = {}
    for reading in train.features:
        by_place.setdefault(reading.place, []).append(reading)
    return [
        next((r for r in readings if r.pooling == "mean"), readings[0])
        for readings in by_place.values()
    ]


def check_kept(reading: Reading, train: Activations) -> None:
    """Refuse a reading that was too large to be kept.

    Raises:
        BellaError: it is not there.
    """
    if reading not in train.features:
        raise BellaError(
            f"{reading} has more numbers than can be kept, or not always as many: choose another "
            f"pooling, such as {', '.join(SMALL[:2])}."
        )
