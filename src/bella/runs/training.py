"""Train a posterior on a user's images, into a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from bella.console import progress_bar
from bella.data import LabelledImages, Preprocess, shifts_of
from bella.data.opening import open_images_by_name, preprocessed
from bella.errors import BellaError
from bella.evaluation.evaluate import evaluate
from bella.files import write_json
from bella.host import device_named
from bella.models import Opened, open_network
from bella.models.towers import Tower
from bella.parallel.ranks import leads
from bella.recipes import recipe_named
from bella.runs.config import RunConfig, complete
from bella.runs.fitting import FIGURES, Loaders, carry_out, start
from bella.runs.found import Found, find
from bella.runs.opened import BATCH, TrainedRun
from bella.sealed import digest
from bella.storage import own_tensors
from bella.training.watching import Watcher


def train(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    tell: Callable[[Found], None] | None = None,
    watch: Sequence[Watcher] = (),
) -> dict[str, float]:
    """Train a posterior on a user's images and evaluate it on their test part and their shifts.

    Of several processes (torchrun) all train, and the first one speaks, evaluates and writes.

    Args:
        config: what to do.
        folder: the run folder.
        resume: continue what the folder holds; see `bella.fit`.
        progress: show bars.
        tell: called before the training with what was found: images, parameters, steps, time.
        watch: told the figures while it trains, see `bella.fit`.

    Returns:
        Figures on the test part by the names of `bella.evaluate`, also in ``figures.json``; none
        in a process that is not the first.

    Raises:
        BellaError: the folder holds another run; or see `bella.fit`, `bella.recipes.make` and
            `bella.data.open_data`.
    """
    config, folder = complete(config), Path(folder)
    device = device_named(config.device)
    progress = progress and leads()
    read = open_images_by_name(preprocess=Preprocess(32), **config.data_arguments())
    classes = read["train"].classes
    opened = _open(config, classes)
    parts = preprocessed(read, opened.preprocess)
    loaders = _loaders(config, parts, opened.preprocess)
    with progress_bar(progress) as bar:
        posterior, probes = start(
            config,
            opened,
            lambda: _open(config, classes),
            loaders,
            folder if resume else None,
            device,
            bar,
        )
    few, _ = next(iter(DataLoader(parts["train"].select(range(min(4, len(parts["train"])))), 4)))
    posterior.to(device).prove(few.to(device))
    if tell is not None and leads():
        tell(find(config, posterior, parts, started=len(probes)))
    done = carry_out(
        config,
        folder,
        posterior,
        probes,
        loaders,
        model={
            "network": config.network,
            "quantised": config.quantised,
            "classes": list(classes),
            "image_size": config.image_size,
            "preprocess": opened.preprocess.to_dict(),
            "skipped_images": len(frozenset().union(*(part.skipped for part in read.values()))),
        },
        identity={
            "classes": list(classes),
            **({"templates": config.templates} if config.head_init == "zero-shot" else {}),
            # What they start as does not follow from their settings.
            **({"adapters": digest(own_tensors(posterior))} if config.from_adapters else {}),
        },
        resume=resume,
        progress=progress,
        watch=watch,
    )
    if done is None:
        return {}
    finished, pooled = done
    draws = recipe_named(config.method).draws
    run = TrainedRun(
        finished.eval(),
        classes,
        opened.preprocess,
        config.network,
        draws,
        config.seed,
        config.workers,
        pooled,
    )
    with progress_bar(progress) as bar, run.drawing():
        test, *shifts = (run.loader(parts[name]) for name in ("test", *shifts_of(parts)))
        found = evaluate(
            run.predicts,
            test,
            ood=dict(zip(shifts_of(parts), shifts, strict=True)),
            progress=bar,
            draws=draws,
        )
    write_json(folder / FIGURES, found)
    return found


def _loaders(
    config: RunConfig, parts: Mapping[str, LabelledImages], preprocess: Preprocess
) -> Loaders:
    """The images in batches; those that are predicted without augmentation."""

    def batches(images: LabelledImages, size: int, shuffle: bool = False) -> DataLoader:
        return DataLoader(images, size, shuffle=shuffle, num_workers=config.workers)

    train, held_out = parts["train"], parts["validation"]
    return Loaders(
        train=batches(train, config.batch_size, shuffle=True),
        ordered=batches(train, config.batch_size),
        plain=batches(train.select(range(len(train)), preprocess.plain()), BATCH),
        validation=batches(held_out, config.batch_size),
        held_out=batches(held_out, BATCH),
    )


def _open(config: RunConfig, classes: Sequence[str]) -> Opened:
    """The network; with the heads' start where the classes' names give it.

    Raises:
        BellaError: it cannot be opened, or knows no texts and was asked for a zero-shot head.
    """
    opened = open_network(
        config.network,
        len(classes),
        config.image_size,
        config.seed,
        quantised=config.quantised,
    )
    if config.head_init == "zero-shot":
        if not isinstance(opened.network, Tower):
            raise BellaError(
                f"{config.network} was not trained with texts, so no head starts as its classes' "
                "names: choose a CLIP or SigLIP, or head_init 'probe'."
            )
        opened.network.start_zero_shot(classes, config.templates)
    return opened
