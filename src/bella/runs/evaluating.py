"""All that `bella evaluate` can say of a run: figures, intervals, decisions, shift and attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from torch import Tensor

from bella import metrics
from bella.data import LabelledImages, OnBadImage, open_images, open_other
from bella.data.corruptions import SEVERITIES, corrupted, corruptions_named
from bella.data.opening import is_set, open_images_by_name, shifts_of
from bella.errors import BellaError
from bella.evaluation.attacks import BUDGETS, attack_named, attacked, check_budget
from bella.evaluation.decisions import Part, decisions
from bella.evaluation.evaluate import evaluate_predictive, shifted_figures
from bella.evaluation.intervals import auroc_intervals
from bella.prediction.predictive import Predictive

if TYPE_CHECKING:
    from bella.runs.opened import TrainedRun


def evaluate_run(
    run: TrainedRun,
    data: str | Path,
    ood: Sequence[str | Path] | str | Path | None = None,
    bar: Progress | None = None,
    on_bad_image: OnBadImage = "stop",
    *,
    folder: str | Path | None = None,
    calibrate: str | Path | None = None,
    promises: dict[str, Any] | None = None,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    side: int | None = None,
    attack: str | None = None,
    budgets: Sequence[float] = BUDGETS,
) -> dict[str, Any]:
    """All figures of a run on labelled images.

    Args:
        run: an opened one.
        data: a labelled folder or CSV; or the name of a set: its test part, as the run's seed draws
            it, and its shifts.
        ood: images of other kinds, each a folder or a CSV (`bella.data.open_other`). One carries
            the name ``ood`` in the figures, several that of their folder or file.
        bar: a display to show bars in.
        on_bad_image: see `bella.data.OnBadImage`.
        folder: where a set by name lies.
        calibrate: a labelled folder or CSV that the run was not trained on, to promise by.
        promises: arguments of `bella.evaluation.decisions.decisions`.
        corruptions: names of `bella.data.corruptions.CORRUPTIONS`, or ``all``.
        severities: of each corruption, 1 to 5.
        side: see `bella.data.corruptions.Corruption`.
        attack: a name of `bella.evaluation.attacks.ATTACKS`.
        budgets: of the attack.

    Returns:
        Those of `figures_of`; under ``corruptions`` and ``attacks`` a list of rows: which, how
        much, and the figures of `shifted_figures`.

    Raises:
        BellaError: data that cannot be opened; see also the functions that are named here.
    """
    # Everything that can be refused is, before the first image is predicted.
    chosen = corruptions_named(corruptions)
    if attack is not None:
        attack_named(attack)
        for budget in budgets:
            check_budget(budget)
    images, shifts = labelled_images(run, data, folder, on_bad_image)
    others = {
        name: open_other(path, run.preprocess, run.classes, on_bad_image=on_bad_image)
        for name, path in names_of_other(ood, taken=[Path(data).stem, *shifts]).items()
    } | shifts
    spoilt = [
        (kind, severity, corrupted(images, kind, severity, seed=run.seed, side=side))
        for kind in chosen
        for severity in severities
    ]
    unseen = None
    if calibrate is not None:
        unseen = open_images(calibrate, run.preprocess, run.classes, on_bad_image=on_bad_image)
        refuse_shared(unseen, images)
    clean = run.collect(images, bar)
    other = {name: run.collect(some, bar) for name, some in others.items()}
    told = None if unseen is None else run.collect(unseen, bar)
    found = figures_of(clean, other, Path(data).stem, told, promises)
    rows = []
    for kind, severity, some in spoilt:
        part = run.collect(some, bar)
        rows.append({"kind": kind, "severity": severity, **shifted_figures(*clean, *part)})
    if rows:
        found["corruptions"] = rows
    if attack is not None:
        found["attacks"] = [
            {"attack": attack, "budget": budget}
            | shifted_figures(*clean, *_attacked(run, images, budget, attack, bar))
            for budget in budgets
        ]
    return found


def labelled_images(
    run: TrainedRun, data: str | Path, folder: str | Path | None, on_bad_image: OnBadImage
) -> tuple[LabelledImages, dict[str, LabelledImages]]:
    """The images to evaluate on, and by name the shifts that a set has of its own.

    Raises:
        BellaError: they cannot be opened, or are not of the run's classes.
    """
    if not is_set(data, folder):
        if folder is not None:
            raise BellaError(
                f"--folder says where a data set by name lies, and {data} is none: leave it out."
            )
        return open_images(data, run.preprocess, run.classes, on_bad_image=on_bad_image), {}
    parts = open_images_by_name(
        str(data),
        run.preprocess,
        seed=run.seed,
        folder=folder,
        classes=run.classes,
        on_bad_image=on_bad_image,
    )
    return parts["test"], {name: parts[name] for name in shifts_of(parts)}


def figures_of(
    clean: Part,
    other: Mapping[str, Part],
    name: str,
    unseen: Part | None = None,
    promises: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that is said of classes, whatever the examples are.

    Args:
        clean: what was predicted of the examples, and their labels.
        other: of examples of other kinds, by name.
        name: of the examples.
        unseen: of examples that were not trained on, to promise by.
        promises: arguments of `bella.evaluation.decisions.decisions`.

    Returns:
        The figures of `bella.evaluate`; under ``intervals`` those of its AUROCs; under
        ``risk_coverage`` a hundred points of that curve, by entropy; with ``unseen`` under
        ``decisions`` what may be promised.
    """
    found: dict[str, Any] = evaluate_predictive(*clean, ood=other)
    found["intervals"] = auroc_intervals(*clean, ood=other)
    found["risk_coverage"] = _thinned(*clean)
    if unseen is not None:
        labelled = {name: clean} | {
            name: part for name, part in other.items() if bool((part[1] >= 0).all())
        }
        found["decisions"] = decisions(unseen, labelled, **(promises or {}))
    return found


def _thinned(predictive: Predictive, labels: Tensor, points: int = 100) -> dict[str, list[float]]:
    """The risk-coverage curve at so many places."""
    predictive, labels = predictive.counted(labels)
    coverage, risk = metrics.risk_coverage(predictive.probs, labels, predictive.entropy)
    places = torch.linspace(0, len(labels) - 1, min(points, len(labels))).long()
    return {"coverage": coverage[places].tolist(), "risk": risk[places].tolist()}


def names_of_other(
    paths: Sequence[str | Path] | str | Path | None, taken: Sequence[str] = ()
) -> dict[str, str | Path]:
    """Names for sets of images of other kinds: ``ood`` for one, else those of folders or files.

    Raises:
        BellaError: two would have one name, or one a name that is ``taken``.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths or ())
    stems = ["ood"] if len(given) == 1 else [Path(path).resolve().stem for path in given]
    clash = [name for name in stems if name in taken or stems.count(name) > 1]
    if clash:
        raise BellaError(
            f"Two sets would be called {clash[0]!r}: one set of other images is called ood and "
            "several by their folders or files, so rename one of these."
        )
    return dict(zip(stems, given, strict=True))


def refuse_shared(unseen: LabelledImages, images: LabelledImages) -> None:
    """Refuse images that are to be promised by and tried on at once.

    Raises:
        BellaError: some are.
    """
    both = {path.resolve() for path in unseen.paths} & {path.resolve() for path in images.paths}
    if both:
        raise BellaError(
            f"{len(both)} of the calibration images are among those to evaluate on, the first is "
            f"{min(both)}: what a promise is made on cannot try it."
        )


def _attacked(
    run: TrainedRun, images: LabelledImages, budget: float, attack: str, bar: Progress | None
) -> Part:
    with run.drawing():
        return attacked(
            run.predicts,
            run.loader(images),
            budget,
            attack=attack,
            preprocess=run.preprocess,
            **run.options,
            progress=bar,
        )
