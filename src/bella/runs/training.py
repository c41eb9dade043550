"""Train a posterior on a user's images, into a run folder.

Nothing in the folder changes before the first epoch is done: a run that is refused, or does not get
so far, leaves what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from bella import transport
from bella.console import progress_bar
from bella.data import LabelledImages, Preprocess, shifts_of
from bella.data.opening import open_images_by_name, preprocessed
from bella.errors import BellaError
from bella.evaluation.evaluate import evaluate
from bella.files import write_json, write_sealed_json, write_whole
from bella.host import device_named
from bella.models import Opened, open_network
from bella.models.towers import Tower
from bella.parallel.ranks import leads
from bella.particles.architectures import AUTO
from bella.posterior import Posterior
from bella.prediction.mixture import FILE as MIXTURE
from bella.prediction.mixture import Mixture
from bella.prediction.pool import FEWEST
from bella.recipes import Plan, linear_head, make, recipe_named
from bella.report.pictures import curves
from bella.runs.config import RunConfig, complete
from bella.runs.found import Found, find
from bella.runs.opened import BATCH, MODEL, TrainedRun
from bella.sealed import digest
from bella.storage import own_tensors
from bella.training.checkpoint import CHECKPOINT
from bella.training.fit import fit
from bella.training.mixture import mixture
from bella.training.probe import Probe, features_of, probes_for
from bella.training.watching import Watcher

CONFIG = "config.yaml"
PROBES = "probes.safetensors"
FIGURES = "figures.json"
CURVES = "curves.png"


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
    recipe = recipe_named(config.method)
    read = open_images_by_name(preprocess=Preprocess(32), **config.data_arguments())
    classes = read["train"].classes
    opened = _open(config, classes)
    parts = preprocessed(read, opened.preprocess)
    with progress_bar(progress) as bar:
        posterior, probes = _make(config, opened, parts, folder if resume else None, device, bar)
    loader = DataLoader(parts["train"], config.batch_size, shuffle=True, num_workers=config.workers)
    validation = DataLoader(parts["validation"], config.batch_size, num_workers=config.workers)
    few, _ = next(iter(DataLoader(parts["train"].select(range(min(4, len(parts["train"])))), 4)))
    posterior.to(device).prove(few.to(device))
    if tell is not None and leads():
        tell(find(config, posterior, parts, started=len(probes)))
    steps = -(-len(loader) // config.accumulate) * config.epochs
    settings = config.fit_settings()

    def before_save() -> None:
        for name in (MODEL, FIGURES, CURVES, PROBES, MIXTURE):
            (folder / name).unlink(missing_ok=True)
        model = {
            "network": config.network,
            "classes": list(classes),
            "image_size": config.image_size,
            "seed": config.seed,
            "method": config.method,
            "draws": recipe.draws,
            "preprocess": opened.preprocess.to_dict(),
            "skipped_images": len(frozenset().union(*(part.skipped for part in read.values()))),
        }
        asked = yaml.safe_dump(config.written(), sort_keys=False)
        write_whole(folder / CONFIG, lambda path: path.write_text(asked))
        if probes:
            write_probes(folder / PROBES, probes)
        write_sealed_json(folder / MODEL, model)

    record = fit(
        posterior,
        loader,
        validation=validation,
        folder=folder,
        resume=resume,
        progress=progress,
        watch=watch,
        identity={
            "method": config.method,
            "classes": list(classes),
            "heads": config.head_init,
            **({"templates": config.templates} if config.head_init == "zero-shot" else {}),
            # What they start as does not follow from their settings.
            **({"adapters": digest(own_tensors(posterior))} if config.from_adapters else {}),
        },
        before_save=before_save,
        **(settings | recipe.training(posterior, steps, settings)),
    )
    if not leads():
        return {}
    # What is laid around trained particles reads the same data once more, in their order.
    ordered = DataLoader(parts["train"], config.batch_size, num_workers=config.workers)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        finished = recipe.finish(posterior, ordered, validation)
    if finished is not posterior:
        finished.save(folder)
    plain = parts["train"].select(range(len(parts["train"])), opened.preprocess.plain())
    pooled = mixed(
        config,
        finished.eval(),
        DataLoader(plain, BATCH, num_workers=config.workers),
        DataLoader(parts["validation"], BATCH, num_workers=config.workers),
        folder,
        progress,
    )
    curves(folder / CURVES, record.history)
    run = TrainedRun(
        finished.eval(),
        classes,
        opened.preprocess,
        config.network,
        recipe.draws,
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
            draws=recipe.draws,
        )
    write_json(folder / FIGURES, found)
    return found


def mixed(
    config: RunConfig,
    posterior: Posterior,
    train: DataLoader,
    validation: DataLoader,
    folder: Path,
    progress: bool,
) -> Mixture | None:
    """The particles pooled with readouts of the frozen network, kept in the run's folder.

    ``None`` where nobody asks for it, or validation has too few examples to fit a pool to.

    Args:
        config: of the run, complete.
        posterior: trained.
        train: what it was trained on, without random changes.
        validation: what it was validated on.
        folder: of the run.
        progress: show bars.
    """
    if config.mixture == "none" or len(validation.dataset) < FEWEST:  # type: ignore[arg-type]
        return None
    with progress_bar(progress) as bar:
        found = mixture(posterior, train, validation, pool=config.mixture, progress=bar)
    found.save_beside(folder)
    return found


def _open(config: RunConfig, classes: Sequence[str]) -> Opened:
    """The network; with the heads' start where the classes' names give it.

    Raises:
        BellaError: it cannot be opened, or knows no texts and was asked for a zero-shot head.
    """
    opened = open_network(config.network, len(classes), config.image_size, config.seed)
    if config.head_init == "zero-shot":
        if not isinstance(opened.network, Tower):
            raise BellaError(
                f"{config.network} was not trained with texts, so no head starts as its classes' "
                "names: choose a CLIP or SigLIP, or head_init 'probe'."
            )
        opened.network.start_zero_shot(classes, config.templates)
    return opened


def _make(
    config: RunConfig,
    opened: Opened,
    parts: dict[str, LabelledImages],
    folder: Path | None,
    device: torch.device,
    bar: Any,
) -> tuple[Posterior, Sequence[Probe]]:
    """The posterior, and the probes that its heads start from.

    Everything that can be refused is, before the images are read for the probes.

    Args:
        config: of the run, complete.
        opened: its network; a fresh one where there are probes.
        parts: of the data.
        folder: whose probes to take, if it goes on; ``None`` to begin anew.
        device: where the network runs.
        bar: to show a bar in.
    """
    assert config.particles is not None
    targets = opened.defaults.target_modules
    heads = opened.defaults.modules_to_save
    plan = Plan(
        particles=config.particles,
        target_modules=chosen(config.target_modules, targets),
        heads=chosen(config.modules_to_save, heads),
        adapters=config.from_adapters or (),
        options=config.constructor_options(),
        seed=config.seed,
    )
    head = linear_head(opened.network, plan.heads)
    posterior = make(config.method, opened.network, plan)
    move = transport.by_name(
        config.transport, posterior, data_size=len(parts["train"]), **config.transport_options
    )
    move.detach()
    if head is None or config.head_init not in ("probe", "frozen"):
        return posterior, ()
    recipe = recipe_named(config.method)
    network = _open(config, parts["train"].classes).network
    count = recipe.probes(config.particles)
    probes = read_probes(folder, count, network.get_submodule(head))
    if probes is None:
        network.to(device)
        sets = (parts["train"].select(range(len(parts["train"])), opened.preprocess.plain()),)
        train, validation = (
            features_of(
                network, head, DataLoader(part, BATCH, num_workers=config.workers), progress=bar
            )
            for part in (*sets, parts["validation"])
        )
        probes = probes_for(train, validation, count, config.seed)
        network.to("cpu")
    plan = replace(plan, head=head, probes=probes, frozen_heads=config.head_init == "frozen")
    return make(config.method, network, plan), probes


def chosen(asked: Sequence[str] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    """What was asked for; the network's own where nothing was, or ``auto``."""
    return own if asked is None or list(asked) == [AUTO] else tuple(asked)


def write_probes(path: Path, probes: Sequence[Probe]) -> None:
    """Into a file of the run folder."""
    stacked = {
        "weight": torch.stack([probe.weight for probe in probes]),
        "bias": torch.stack([probe.bias for probe in probes]),
    }
    write_whole(path, lambda unfinished: save_file(stacked, unfinished))


def read_probes(folder: Path | None, count: int, head: Any) -> list[Probe] | None:
    """The probes of a run that goes on: to the same bits, whatever machine fits them today.

    They are of the same data: of others, the run is refused.
    """
    if folder is None or not (folder / CHECKPOINT).exists():
        return None
    try:
        found = load_file(folder / PROBES)
        weight, bias = found["weight"], found["bias"]
    except (OSError, SafetensorError, KeyError):
        return None
    if weight.shape != (count, *head.weight.shape) or bias.shape != (count, len(head.bias)):
        return None
    return [Probe(w, b) for w, b in zip(weight, bias, strict=True)]
