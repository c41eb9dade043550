"""The bench that methods are run on: one task's data, features, probes and earlier runs.

What does not depend on the method is computed once for all: of each part of the data the shared
prefix and the frozen features, and the linear probes. Of a large pool nothing is computed but of
what a seed draws.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import Progress
from torch.utils.data import DataLoader, Subset, default_collate

import bella
from bella.errors import BellaError
from bella.evaluation.evaluate import collect
from bella.experiments.examples import Examples, read, read_once
from bella.experiments.methods.base import Costs, Outputs
from bella.experiments.predictions import read_outputs
from bella.experiments.tasks.task import Place as Part
from bella.experiments.tasks.task import Task
from bella.files import read_json
from bella.host import device_named
from bella.inputs import split, to
from bella.models import Opened
from bella.models.language import OpenedLanguage
from bella.particles.stream import Stream
from bella.posterior import Posterior
from bella.precision import precision_for
from bella.prediction.activations import Place, Reader, Reading, find_places
from bella.prediction.mixture import Distance, Readout
from bella.prediction.predict import Combined, in_precision, predict
from bella.recipes import Plan, Recipe, linear_head
from bella.training.anchors import Activations, choose_anchors
from bella.training.cache import CachedPrefix, is_fixed
from bella.training.identity import fingerprint_data
from bella.training.mixture import LARGEST, Gathered, candidates, distances_of, gather
from bella.training.probe import (
    Features,
    Probe,
    bootstrap,
    choose_strength,
    fit_probe,
    head_inputs,
)
from bella.training.settings import Settings, checked
from bella.trees import map_tensors, tensors_of

Batches = Callable[[list[int]], Any]


Made = TypeVar("Made")
Kept = dict[tuple[str, tuple[int, ...]], Made]
"""What was made of some examples of a pool."""

COSTS = ("trainable", "bytes_on_disk", "seconds_training", "mb_training", "ms_predicting")
TIMED = 32
"""Examples of the batch whose prediction is timed."""


class Bench:
    """What a `Method` works with.

    Args:
        task: data, network and settings.
        folder: of all runs.
        settings: of `bella.fit`, for every method.
        bar: where progress is shown.
        device: where everything runs, see `bella.host.device_named`.
        workers: processes that read images; 0 reads them in this one.

    Attributes:
        reads: whether rows read frozen activations: they are then read in the passes that fill the
            cache of the shared prefix.
    """

    def __init__(
        self,
        task: Task,
        folder: Path,
        settings: Mapping[str, Any],
        bar: Progress,
        device: str | None = None,
        workers: int = 0,
    ):
        self.task = task
        self.folder = folder
        self.device = device_named(device)
        self.settings = dict(settings)
        self.bar = bar
        self.workers = workers
        self.reads = False
        self.fresh: tuple[int, Opened | OpenedLanguage] | None = None
        self.prefixes: Kept[Batches] = {}
        self.seen: Kept[Features] = {}
        self.read: Kept[Activations] = {}
        self.anchors: dict[int, list[Readout]] = {}
        self.anchor_seconds: dict[int, float] = {}
        self.distances: dict[int, list[Distance]] = {}
        self.probes: dict[tuple[int, int], list[Probe]] = {}
        self.strengths: dict[int, float] = {}
        self.networks: dict[int, str] = {}
        self.data = ""

    @property
    def precision(self) -> str:
        """Of training and predictions."""
        return checked(Settings, self.settings).precision

    # ------------------------------------------------------------ what decides a run

    def network_of(self, seed: int) -> str:
        """SHA-256 of a seed's network, its fresh head included."""
        if seed not in self.networks:
            state = dict(self.open(seed).network.state_dict())
            self.networks[seed] = str(fingerprint_data(state))
        return self.networks[seed]

    def data_of(self, seed: int) -> str:
        """SHA-256 of all images, their labels, classes and preprocessing, and of a seed's split."""
        if not self.data:
            self.data = str(fingerprint_data(dict(self.task.pools)))
        return str(fingerprint_data([self.data, list(self.task.classes), self.task.split(seed)]))

    # ------------------------------------------------------------ data and network

    def open(self, seed: int) -> Any:
        """A fresh network for a seed, on the device. It is read once and copied ever after: a
        language model takes a second to read."""
        if self.fresh is None or self.fresh[0] != seed:
            opened = self.task.open(seed)
            self.fresh = seed, opened._replace(network=opened.network.to(self.device))
        kept = self.fresh[1]
        return kept._replace(network=copy.deepcopy(kept.network))

    def frozen(self) -> Posterior:
        """The network as it was pre-trained, with the entrance of low-rank particles."""
        opened = self.open(0)
        return bella.low_rank(
            opened.network,
            1,
            self.task.rank,
            opened.defaults.target_modules,
            modules_to_save=opened.defaults.modules_to_save,
            b_std=0.0,
        )

    def once(self, kept: Kept[Made], place: Part, make: Callable[[], Made]) -> Made:
        """What is made of some examples of a pool: made once, and kept while seeds ask for it. No
        row's random numbers are used up: whether it was made before is nothing that decides one."""
        key = key_of(place)
        if key not in kept:
            while len(kept) >= len(self.task.split(0)):  # the oldest is what another seed drew
                del kept[next(iter(kept))]
            with torch.random.fork_rng():
                kept[key] = make()
        kept[key] = kept.pop(key)  # the newest
        return kept[key]

    @cached_property
    def entrance(self) -> bool | str:
        """Module at which a network continues from what the shared prefix made; or ``False``, where
        the network shares none or the data are random."""
        if not self.task.pretrained:
            return False
        posterior = self.frozen().train()
        for pool in self.task.pools.values():
            if is_fixed(posterior, pool, self.device) and posterior.shared is not None:
                return posterior.shared.entrances[0]
        return False

    def batches(self, pool: str, positions: Sequence[int]) -> Batches:
        """From numbers among some examples of a pool to a batch: what the shared prefix makes of
        them, computed once; or the images, where the network shares no prefix or the data are
        random."""
        place = pool, list(positions)

        def make() -> Batches:
            examples: Any = Subset(self.task.pools[pool], place[1])
            posterior = self.frozen().train() if self.task.pretrained else None
            if posterior is not None and is_fixed(posterior, examples, self.device):
                return self.cached(place, examples, posterior).batch
            return read(self.task.pools[pool], place[1], self.workers, self.bar)

        return self.once(self.prefixes, place, make)

    def cached(self, place: Part, examples: Any, posterior: Posterior) -> CachedPrefix:
        """The shared prefix of some examples, and in the same passes their frozen activations,
        where rows read them and there is a head that readouts could stand beside."""
        readable = self.reads and key_of(place) not in self.read
        if not (readable and self.open(0).defaults.modules_to_save):
            precision = precision_for(posterior, self.precision)
            with precision.around(posterior), precision.once(posterior):
                return CachedPrefix(posterior, read_once(examples, self.workers), progress=self.bar)
        reader, readings = self.reader
        gathered = Gathered(readings)

        def prefix(*args: Any, **kwargs: Any) -> Stream:
            with torch.no_grad():
                found, begun, _ = reader.features(gathered.kept, args, kwargs)
            if not (begun and isinstance(begun[0], Stream)):
                return reader.posterior.prefix(*args, **kwargs)  # says that nothing is shared
            gathered.add(found, torch.ones(begun[0].batch, dtype=torch.bool))
            return begun[0]

        made = CachedPrefix(
            reader.posterior, read_once(examples, self.workers), progress=self.bar, prefix=prefix
        )
        read = Activations(gathered.whole(), made.labels.cpu().long())
        self.once(self.read, place, lambda: read)
        return made

    def loader(
        self,
        pool: str,
        positions: Sequence[int],
        batch_size: int = 64,
        *,
        shuffle: bool = False,
        images: bool = False,
    ) -> DataLoader:
        """Batches of some examples of a pool, as `batches` makes them or as ``images``."""
        batches: Any = Examples(self.task.pools[pool], positions)
        if not images:
            batches = self.batches(pool, positions)
        return DataLoader(
            range(len(positions)),  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=shuffle,
            collate_fn=batches,
            num_workers=self.workers if getattr(batches, "anew", False) else 0,
        )

    def predict(
        self, posterior: Posterior | Combined, seed: int, *, draws: int = 1, images: bool = False
    ) -> Outputs:
        """What a posterior says of all parts but the training data."""
        found = {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for part, place in self.task.split(seed).items():
                if part != "train":
                    data = self.loader(*place, images=images)
                    predictive, labels = collect(
                        posterior, data, draws=draws, precision=self.precision
                    )
                    found[part] = (predictive, labels)
        return found

    def features(self, part: str, seed: int) -> Features:
        """What the frozen network makes of one part."""
        place = self.task.split(seed)[part]
        return self.once(self.seen, place, lambda: head_inputs(self.frozen(), self.loader(*place)))

    @cached_property
    def reader(self) -> tuple[Reader, list[Reading]]:
        """What reads frozen activations, and all readings that may be kept."""
        posterior = self.frozen().eval()
        pool, images = next(iter(self.task.pools.items()))
        batch = next(iter(self.loader(pool, range(min(8, len(images))), images=True)))
        args, kwargs, _ = split(batch, posterior.network)
        args, kwargs = to(args, self.device), to(kwargs, self.device)
        places = find_places(posterior, args, kwargs)
        reader = Reader(posterior, places.values())
        arrived, *_ = reader(args, kwargs)
        most = LARGEST // max(len(positions) for _, positions in self.task.split(0).values())
        readings = [
            reading
            for reading in candidates(posterior, places, args, kwargs)
            if arrived[reading.place][0].numel() <= most or reading.pooling != "flat"
        ]
        return reader, readings

    def activations(self, part: str, seed: int) -> Activations:
        """What the frozen network makes of one part at several depths."""
        place = self.task.split(seed)[part]

        def make() -> Activations:
            reader, readings = self.reader
            images = self.loader(*place, images=True)
            found, _ = gather(reader, readings, images, None, 64, progress=self.bar, what=part)
            return found

        return self.once(self.read, place, make)

    def check_readable(self) -> None:
        """Refuse a network that has no head for the task's classes.

        Raises:
            BellaError: its answers are of another kind, such as options that it is shown.
        """
        if not self.open(0).defaults.modules_to_save:
            raise BellaError(
                f"The network of {self.task.name} answers without a head of its own: there is no "
                "class that a readout could learn, and no row an example to take a distance "
                "from, so leave out the rows with anchors or a distance."
            )

    def readouts_of(self, seed: int) -> list[Readout]:
        """The anchors of a seed's split.

        Raises:
            BellaError: see `check_readable`.
        """
        self.check_readable()
        if seed not in self.anchors:
            parts = self.activations("train", seed), self.activations("validation", seed)
            begun = time.perf_counter()
            chosen = choose_anchors(*parts, len(self.task.classes), progress=self.bar)
            self.anchors[seed] = [anchor.readout for anchor in chosen]
            self.anchor_seconds[seed] = time.perf_counter() - begun
        return self.anchors[seed]

    def distances_of(self, seed: int) -> list[Distance]:
        """The distances from a seed's training part."""
        if seed not in self.distances:
            parts = self.activations("train", seed), self.activations("validation", seed)
            self.distances = {seed: distances_of(None, *parts)}
        return self.distances[seed]

    def places_of(self, readouts: Sequence[Readout], distances: Sequence[Distance]) -> list[Place]:
        """Where readouts and distances read."""
        readings = [*chain(*(r.readings for r in readouts)), *(d.reading for d in distances)]
        used = {reading.place for reading in readings}
        return [place for name, place in self.reader[0].places.items() if name in used]

    def probes_of(self, seed: int, count: int) -> list[Probe]:
        """The linear probe of a seed's split, or several on resamples of its training part."""
        if (seed, count) not in self.probes:
            train = self.features("train", seed)
            if seed not in self.strengths:
                self.strengths[seed] = choose_strength(train, self.features("validation", seed))
            strength = self.strengths[seed]
            self.probes[seed, count] = (
                [fit_probe(train, strength)]
                if count == 1
                else bootstrap(train, strength, count, seed)
            )
        return self.probes[seed, count]

    def plan(
        self,
        recipe: Recipe,
        particles: int,
        seed: int,
        options: Mapping[str, Any],
        opened: Opened | OpenedLanguage,
    ) -> Plan:
        """What a recipe is told of this task: the heads of a pre-trained network start from probes,
        where it has one Linear.

        Args:
            recipe: of the posterior.
            particles: how many.
            seed: of the probes and of every start.
            options: of the constructor.
            opened: the network at hand.
        """
        if not self.task.pretrained:
            return Plan(particles=particles, pretrained=False, options=options, seed=seed)
        head = linear_head(opened.network, opened.defaults.modules_to_save)
        probes = [] if head is None else self.probes_of(seed, recipe.probes(particles))
        return Plan(
            particles=particles,
            target_modules=opened.defaults.target_modules,
            heads=opened.defaults.modules_to_save,
            head=head,
            probes=probes,
            options=options,
            seed=seed,
        )

    @cached_property
    def few_images(self) -> Any:
        """The inputs of a few examples, on the device."""
        images = next(iter(self.task.pools.values()))
        inputs, _ = default_collate([images[i] for i in range(min(TIMED, len(images)))])
        return to(inputs, self.device)

    def milliseconds(self, posterior: Posterior | Combined, *, draws: int = 1) -> float:
        """Time to predict one of `few_images`, from the image on: the best of three."""
        best = math.inf
        with ExitStack() as stack:
            for number in range(3):
                inputs = map_tensors(torch.clone, self.few_images)  # none may be remembered
                begun = time.perf_counter()
                said = predict(posterior, inputs, draws=draws, precision=self.precision)
                said.cpu()  # waits for the device
                best = min(best, time.perf_counter() - begun)
                if number == 0:  # decided
                    stack.enter_context(in_precision(posterior, self.precision))
        return 1000 * best / len(tensors_of(self.few_images)[0])

    # ------------------------------------------------------------ earlier runs

    def place(self, method: str, seed: int) -> Path:
        """Folder of one run."""
        return self.folder / "runs" / f"{method}-{seed}"

    def outputs_of(self, method: str, seed: int) -> Outputs:
        """The predictions of an earlier run."""
        return read_outputs(self.place(method, seed))

    def figures_of(self, method: str, seed: int) -> dict[str, Any]:
        """The figures of an earlier run, and the key of what decided it."""
        return read_json(self.place(method, seed) / "figures.json")

    def costs_of(self, method: str, seed: int) -> Costs:
        """The costs of an earlier run."""
        row = self.figures_of(method, seed)["costs"]
        return {name: math.nan if row[name] is None else row[name] for name in COSTS}


def key_of(place: Part) -> tuple[str, tuple[int, ...]]:
    """Some examples of a pool, as a key."""
    pool, positions = place
    return pool, tuple(positions)
