"""What every run does, whatever its examples are: start, train, lay around, keep the folder.

Nothing in the folder changes before the first epoch is done: a run that is refused, or does not get
so far, leaves what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from bella import transport
from bella.console import progress_bar
from bella.files import write_sealed_json, write_whole
from bella.parallel.ranks import leads
from bella.particles.architectures import AUTO
from bella.posterior import Posterior
from bella.prediction.mixture import FILE as MIXTURE
from bella.prediction.mixture import Mixture
from bella.prediction.pool import FEWEST
from bella.recipes import Plan, linear_head, make, recipe_named
from bella.report.pictures import curves
from bella.runs.config import RunConfig
from bella.runs.opened import MODEL
from bella.training.checkpoint import CHECKPOINT
from bella.training.fit import fit
from bella.training.mixture import mixture
from bella.training.probe import Probe, features_of, probes_for
from bella.training.watching import Watcher

CONFIG = "config.yaml"
PROBES = "probes.safetensors"
FIGURES = "figures.json"
CURVES = "curves.png"


@dataclass(frozen=True)
class Loaders:
    """A run's data in batches.

    Attributes:
        train: in another order each epoch, with random changes where there are any.
        ordered: the same in their order.
        plain: the training data as they are, in batches to predict.
        validation: in batches of the training.
        held_out: the same in batches to predict.
    """

    train: DataLoader
    ordered: DataLoader
    plain: DataLoader
    validation: DataLoader
    held_out: DataLoader


def start(
    config: RunConfig,
    opened: Any,
    again: Callable[[], Any],
    loaders: Loaders,
    folder: Path | None,
    device: torch.device,
    bar: Progress,
    *,
    probed: bool = True,
) -> tuple[Posterior, Sequence[Probe]]:
    """The posterior, and the probes that its heads start from.

    Everything that can be refused is, before the data are read for the probes.

    Args:
        config: of the run, complete.
        opened: its network with what to adapt in it.
        again: opens it anew, for the particles that start from probes.
        loaders: the data.
        folder: whose probes to take, if it goes on; ``None`` to begin anew.
        device: where the network runs.
        bar: to show a bar in.
        probed: whether probes can start its heads at all.

    Raises:
        BellaError: see `bella.recipes.make` and `bella.transport.by_name`.
    """
    assert config.particles is not None
    plan = Plan(
        particles=config.particles,
        target_modules=chosen(config.target_modules, opened.defaults.target_modules),
        heads=chosen(config.modules_to_save, opened.defaults.modules_to_save),
        adapters=config.from_adapters or (),
        options=config.constructor_options(),
        seed=config.seed,
    )
    head = linear_head(opened.network, plan.heads) if probed else None
    posterior = make(config.method, opened.network, plan)
    size = len(loaders.train.dataset)  # type: ignore[arg-type]
    move = transport.by_name(
        config.transport, posterior, data_size=size, **config.transport_options
    )
    move.detach()
    if head is None or config.head_init not in ("probe", "frozen"):
        return posterior, ()
    network = again().network
    count = recipe_named(config.method).probes(config.particles)
    probes = read_probes(folder, count, network.get_submodule(head))
    if probes is None:
        network.to(device)
        train, validation = (
            features_of(network, head, data, progress=bar)
            for data in (loaders.plain, loaders.held_out)
        )
        probes = probes_for(train, validation, count, config.seed)
        network.to("cpu")
    plan = replace(plan, head=head, probes=probes, frozen_heads=config.head_init == "frozen")
    return make(config.method, network, plan), probes


def carry_out(
    config: RunConfig,
    folder: Path,
    posterior: Posterior,
    probes: Sequence[Probe],
    loaders: Loaders,
    *,
    model: Mapping[str, Any],
    identity: Mapping[str, Any],
    resume: bool,
    progress: bool,
    watch: Sequence[Watcher] = (),
    settings: Mapping[str, Any] | None = None,
    beside: Mapping[str, Mapping[str, Tensor] | None] | None = None,
) -> tuple[Posterior, Mixture | None] | None:
    """Train, lay around the particles what the method has, pool them with readouts; all of it kept.

    Args:
        config: of the run, complete.
        folder: of the run.
        posterior: see `start`.
        probes: see `start`.
        loaders: the data.
        model: what opens the network again, for ``model.json``.
        identity: what makes two runs the same, see `bella.fit`.
        resume: continue what the folder holds.
        progress: show bars.
        watch: told the figures while it trains.
        settings: of `bella.fit`, in the place of those of ``config``.
        beside: files that the run has beside its particles, by name, with the tensors that they
            hold; of a name without tensors none is left.

    Returns:
        What predicts, and the mixture around it, if there is one; ``None`` in a process that is not
        the first.
    """
    recipe = recipe_named(config.method)
    steps = -(-len(loaders.train) // config.accumulate) * config.epochs
    settings, beside = {**config.fit_settings(), **(settings or {})}, beside or {}

    def before_save() -> None:
        for name in (MODEL, FIGURES, CURVES, PROBES, MIXTURE, *beside):
            (folder / name).unlink(missing_ok=True)
        asked = yaml.safe_dump(config.written(), sort_keys=False)
        write_whole(folder / CONFIG, lambda path: path.write_text(asked))
        if probes:
            write_probes(folder / PROBES, probes)
        for name, tensors in beside.items():
            if tensors is not None:
                write_tensors(folder / name, tensors)
        own = {"seed": config.seed, "method": config.method, "draws": recipe.draws}
        write_sealed_json(folder / MODEL, {**model, **own})

    record = fit(
        posterior,
        loaders.train,
        validation=loaders.validation,
        folder=folder,
        resume=resume,
        progress=progress,
        watch=watch,
        identity={"method": config.method, "heads": config.head_init, **identity},
        before_save=before_save,
        **(settings | recipe.training(posterior, steps, settings)),
    )
    if not leads():
        return None
    # What is laid around trained particles reads the same data once more, in their order.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        finished = recipe.finish(posterior, loaders.ordered, loaders.validation)
    if finished is not posterior:
        finished.save(folder)
    pooled = _mixed(config, finished.eval(), loaders, folder, progress)
    curves(folder / CURVES, record.history)
    return finished, pooled


def _mixed(
    config: RunConfig, posterior: Posterior, loaders: Loaders, folder: Path, progress: bool
) -> Mixture | None:
    """The particles pooled with readouts of the frozen network, kept in the run's folder.

    ``None`` where nobody asks for it, or validation has too few examples to fit a pool to.
    """
    if config.mixture == "none" or len(loaders.held_out.dataset) < FEWEST:  # type: ignore[arg-type]
        return None
    with progress_bar(progress) as bar:
        found = mixture(
            posterior, loaders.plain, loaders.held_out, pool=config.mixture, progress=bar
        )
    found.save_beside(folder)
    return found


def chosen(asked: Sequence[str] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    """What was asked for; the network's own where nothing was, or ``auto``."""
    return own if asked is None or list(asked) == [AUTO] else tuple(asked)


def write_probes(path: Path, probes: Sequence[Probe]) -> None:
    """Into a file of the run folder."""
    stacked = {
        "weight": torch.stack([probe.weight for probe in probes]),
        "bias": torch.stack([probe.bias for probe in probes]),
    }
    write_tensors(path, stacked)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Into a file, whole or not at all."""
    write_whole(path, lambda unfinished: save_file(dict(tensors), unfinished))


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
