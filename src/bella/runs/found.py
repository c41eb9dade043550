"""What was found before a training: images, parameters, steps, the axis, and the time it takes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.utils.data import default_collate

from bella.data import LabelledImages
from bella.likelihood import nll
from bella.particles.copies import Copies
from bella.posterior import Posterior
from bella.prediction.pool import FEWEST
from bella.runs.config import RunConfig

FEW_STEPS = 50
"""A training of fewer steps hardly moves particles from where they start."""

MEASURED = 8
"""Images of the batch whose step is timed."""

SHOWN = 12
"""So many classes are listed; of more, the smallest and the largest."""


class Begun:
    """What every kind of run says before it trains, of what its own class has counted."""

    parameters: Mapping[str, int]
    particles: int
    steps_per_epoch: int
    epochs: int
    device: str

    def of_parameters(self) -> str:
        """The line of what trains."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.parameters.items())
        return f"parameters: {kinds}; {self.particles} particle{'s'[: self.particles != 1]}"

    def of_steps(self) -> str:
        """The line of how long it trains, and where."""
        each, epochs = self.steps_per_epoch, self.epochs
        return (
            f"training: {epochs} epoch{'s'[: epochs != 1]} of {each} step{'s'[: each != 1]}, "
            f"{each * epochs} in all, on {self.device}"
        )

    def few_steps(self, examples: str) -> list[str]:
        """A warning where particles will hardly move; ``examples`` says how many of what there
        are."""
        each, steps = self.steps_per_epoch, self.steps_per_epoch * self.epochs
        if steps >= FEW_STEPS:
            return []
        return [
            f"{examples} make {each} step{'s'[: each != 1]} an epoch and {steps} in all, in which "
            "particles hardly move: lower --batch-size or raise --epochs."
        ]


@dataclass(frozen=True)
class Found(Begun):
    """What a training begins with.

    Attributes:
        images: for each part, how many of each class.
        parameters: how many of each kind, over all particles.
        particles: how many.
        steps_per_epoch: steps of the optimiser in an epoch.
        epochs: how many.
        entrance: where the particle axis opens, in words.
        heads: what the heads start from, in words.
        device: where it runs.
        seconds: that the training will take, roughly; NaN where it could not be measured.
        pools: whether the particles are to be pooled with readouts afterwards.
    """

    images: Mapping[str, Mapping[str, int]]
    parameters: Mapping[str, int]
    particles: int
    steps_per_epoch: int
    epochs: int
    entrance: str
    heads: str
    device: str
    seconds: float
    pools: bool = False

    def lines(self) -> list[str]:
        """All of it for a terminal, one thing a line."""
        rows = [("images", *self.images), *self._classes()]
        rows.append(("all", *(str(sum(counts.values())) for counts in self.images.values())))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        spell = "" if math.isnan(self.seconds) else f", about {in_words(self.seconds)}"
        return [
            *table,
            self.of_parameters(),
            f"the particle axis opens at {self.entrance}",
            f"heads: {self.heads}",
            self.of_steps() + spell,
        ]

    def warnings(self) -> list[str]:
        """What a person should know before he waits, in sentences."""
        said = []
        count = sum(self.images["train"].values())
        said += self.few_steps(f"{count} training images")
        if self.pools and 0 < sum(self.images["validation"].values()) < FEWEST:
            said.append(
                f"The validation part has fewer than {FEWEST} images, too few to pool particles "
                "with readouts and to calibrate them: the run predicts with its particles alone."
            )
        for part, counts in self.images.items():
            without = [name for name in self.images["train"] if not counts.get(name)]
            if without:
                said.append(f"The {part} part has no image of {', '.join(without)}.")
        return said

    def _classes(self) -> list[tuple[str, ...]]:
        names = list(self.images["train"])
        if len(names) > SHOWN:
            by_size = sorted(names, key=lambda name: self.images["train"][name])
            names = [by_size[0], by_size[-1]]
        return [
            (f"  {name}", *(str(counts.get(name, 0)) for counts in self.images.values()))
            for name in names
        ]


def in_words(seconds: float) -> str:
    """A time span as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def find(
    config: RunConfig,
    posterior: Posterior,
    parts: Mapping[str, LabelledImages],
    *,
    started: int,
) -> Found:
    """Count and measure; no random number is used up and no parameter changes.

    Args:
        config: of the run, complete.
        posterior: fresh, on its device, and proven.
        parts: of the data.
        started: how many probes its heads start from.
    """
    batches = -(-len(parts["train"]) // config.batch_size)
    heads = {
        "probe": "start as linear probes of the frozen features, and train",
        "frozen": "stay the linear probes of the frozen features that they start as",
        "copy": "start as copies of the network's",
        "zero-shot": "start as the texts of the classes, and train",
        "reset": "start anew, each on its own",
    }[config.head_init]
    if config.from_adapters:
        heads = "start as those of the adapters, or copies of the network's"
    elif config.head_init in ("probe", "frozen") and not started:
        heads = "start as copies of the network's (probes can start one Linear alone)"
    shared = posterior.shared
    return Found(
        images={name: _by_class(parts[name]) for name in ("train", "validation", "test")},
        parameters=parameters_by_kind(posterior),
        particles=posterior.particles,
        steps_per_epoch=-(-batches // config.accumulate),
        epochs=config.epochs,
        entrance="the inputs" if shared is None else shared.entrances[0],
        heads=heads,
        device=str(next(posterior.network.parameters()).device),
        seconds=expected_seconds(config, posterior, parts["train"], len(parts["validation"])),
        pools=config.mixture != "none",
    )


def _by_class(images: LabelledImages) -> dict[str, int]:
    counts = Counter(images.labels)
    return {name: counts[number] for number, name in enumerate(images.classes)}


def parameters_by_kind(posterior: Posterior) -> dict[str, int]:
    """Numbers in the frozen base, in heads (whole copies) and in what else differs or trains."""
    found = {"frozen": 0, "in heads": 0, "in what differs": 0, "shared that train": 0}
    own = {id(p) for p in posterior.stacked_parameters().values()}
    heads = {
        id(p)
        for layer in posterior.layers().values()
        if isinstance(layer, Copies)
        for p in layer.values.parameters()
    }
    for parameter in posterior.network.parameters():
        if id(parameter) in heads and posterior.kind != "full":
            kind = "in heads"
        elif not parameter.requires_grad:
            kind = "frozen"
        else:
            kind = "in what differs" if id(parameter) in own else "shared that train"
        found[kind] += parameter.numel()
    return {kind: count for kind, count in found.items() if count}


def expected_seconds(
    config: RunConfig, posterior: Posterior, images: LabelledImages, validation: int
) -> float:
    """How long the training will take, from a timed step of a few images.

    Reading an image and what comes before the particle axis count once where `bella.fit` keeps
    what the prefix makes, else in every epoch.
    """
    device = next(posterior.network.parameters()).device
    count = min(MEASURED, len(images))
    particles = config.particles_per_pass
    chunk = particles if isinstance(particles, int) else posterior.particles
    passes = math.ceil(posterior.particles / min(chunk, posterior.particles))
    alone = passes > 1 or particles == "auto"
    if particles == "auto":
        chunk, passes = 1, posterior.particles
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    trained = [p for p in posterior.parameters() if p.requires_grad]
    times = []
    posterior.eval()  # batch norms that train keep their statistics
    try:
        with torch.random.fork_rng():
            for _ in range(2):  # the first one warms up
                begun = time.perf_counter()
                x, y = default_collate([images[i] for i in range(count)])
                with torch.no_grad():
                    args, kwargs = posterior.begun(x.to(device))
                wait()
                read = time.perf_counter()
                with posterior.subset(range(chunk)) if alone else nullcontext():
                    loss = nll(posterior(*args, **kwargs), y.to(device))
                    torch.autograd.grad(loss, trained, allow_unused=True)
                wait()
                times.append((read - begun, (time.perf_counter() - read) * passes))
    except torch.OutOfMemoryError:
        return math.nan
    finally:
        posterior.train()
    prefix, step = (seconds / count for seconds in times[-1])
    once = posterior.shared is not None and not posterior.trains_base
    once &= config.cache_prefix is not False and config.minibatches == "shared"
    once &= images.preprocess.augment is None
    reads = (len(images) + validation) * (1 if once else config.epochs)
    return reads * prefix + config.epochs * (len(images) + validation / 3) * step
