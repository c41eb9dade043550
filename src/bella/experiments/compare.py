"""Run methods on a task over several seeds; go on where an interrupted comparison stopped.

The folder holds one sub-folder a run with its figures and predictions. What is there is not run
again, as long as it was run with the same settings.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

import bella
from bella.errors import BellaError
from bella.evaluation.cost import cost
from bella.evaluation.evaluate import collect, evaluate_predictive
from bella.evaluation.similarity import weight_similarity
from bella.evaluation.temperature import fit_temperature
from bella.experiments.methods import Method, methods_named
from bella.experiments.probe import (
    Features,
    Probe,
    bootstrap,
    choose_strength,
    fit_probe,
    head_inputs,
    start_heads,
)
from bella.experiments.task import Task
from bella.layers.copies import LinearCopies
from bella.posterior import Point, Posterior
from bella.predictive import Predictive
from bella.storage import write_whole
from bella.training.cache import CachedPrefix, is_fixed
from bella.training.fit import fit
from bella.training.progress import progress_bar
from bella.training.record import plain, read_json, versions, write_json
from bella.training.settings import Settings, checked

Batches = Callable[[list[int]], Any]
Outputs = dict[str, tuple[Tensor, Tensor]]
"""For each part of the data: every particle's logits (particles, count, classes) and labels."""


def compare(
    task: Task,
    methods: Sequence[str],
    *,
    seeds: int = 3,
    folder: str | Path,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Compare methods on the same network, data, budget and seeds.

    Args:
        task: the data and the network.
        methods: names in `bella.experiments.methods.METHODS`.
        seeds: how many; each decides the split (where the task has none of its own), the factors,
            the order of the data and the noise.
        folder: for ``results.json`` and the runs.
        progress: show bars.
        **settings: of `bella.fit`, in place of the task's.

    Returns:
        What ``results.json`` holds: per method the figures of every seed, their mean and spread
        (standard deviation over seeds; null for one seed).

    Raises:
        BellaError: unknown methods, or settings out of range.
    """
    if seeds < 1:
        raise BellaError(f"seeds={seeds}: give a whole number of at least 1.")
    chosen = methods_named(list(methods))
    folder = Path(folder)
    begun = time.perf_counter()
    with progress_bar(progress) as bar:
        comparison = Comparison(task, folder, dict(task.settings) | settings, bar)
        steps = bar.add_task("methods", total=seeds * len(chosen))
        rows: dict[str, list[dict[str, float]]] = {method.name: [] for method in chosen}
        for seed in range(seeds):
            for method in chosen:
                bar.update(steps, description=f"{method.title}, seed {seed}")
                rows[method.name].append(comparison.run(method, seed))
                bar.advance(steps)
    results = {
        "task": task.name,
        "title": task.title,
        "seeds": seeds,
        "settings": comparison.settings,
        "parts": {name: len(positions) for name, (_, positions) in task.split(0).items()},
        "versions": versions(),
        "date": date.today().isoformat(),
        "seconds": None if comparison.resumed else round(time.perf_counter() - begun, 1),
        "methods": {
            method.name: {"title": method.title, "figures": summary(rows[method.name])}
            for method in chosen
            if method.name in methods
        },
    }
    write_json(folder / "results.json", results)
    return plain(results)


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, spread and values of each figure over the seeds."""
    found = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        spread = float(values.std()) if len(values) > 1 else None
        found[name] = {"mean": float(values.mean()), "spread": spread, "values": values.tolist()}
    return found


class Comparison:
    """The runs of one comparison. The shared prefix of each part is computed once for all."""

    def __init__(self, task: Task, folder: Path, settings: dict[str, Any], bar: Progress):
        checked(Settings, settings)
        self.task = task
        self.folder = folder
        self.settings = settings
        self.bar = bar
        self.pools: dict[str, Batches] = {}
        self.resumed = False  # the wall time of a part says nothing of the whole
        self.entrance: bool | str = False  # where a plain network continues from a stream
        self.pool_features: dict[str, Features] = {}
        self.probes: dict[tuple[int, int], list[Probe]] = {}
        self.strengths: dict[int, float] = {}

    def run(self, method: Method, seed: int) -> dict[str, float]:
        """One method with one seed: its figures, from the folder if they are there."""
        place = self.folder / "runs" / f"{method.name}-{seed}"
        key = {"settings": self.settings, "method": plain(vars(method)), "seed": seed}
        key["method"] |= {name: dict(getattr(method, name)) for name in ("settings", "build")}
        key |= {"rank": self.task.rank, "build": dict(self.task.build)}
        done = place / "figures.json"
        if done.exists() and (found := read_json(done))["key"] == plain(key):
            self.resumed = True
            return {name: float("nan") if v is None else v for name, v in found["figures"].items()}
        outputs, costs = self.outputs(method, seed, place)
        predictives = {name: Predictive(logits) for name, (logits, _) in outputs.items()}
        labels = {name: y for name, (_, y) in outputs.items()}
        row = evaluate_predictive(
            predictives["test"],
            labels["test"],
            ood={name: (predictives[p], labels[p]) for name, p in self.task.shifts.items()},
        )
        row["validation_nll"] = float(predictives["validation"].nll(labels["validation"]))
        row |= costs
        tensors = {
            f"{name}.{kind}": value.contiguous()
            for name, pair in outputs.items()
            for kind, value in zip(("logits", "labels"), pair, strict=True)
        }
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / "predictions.safetensors", lambda path: save_file(tensors, path))
        write_json(done, {"key": key, "figures": row})
        gc.collect()
        return row

    def outputs(self, method: Method, seed: int, place: Path) -> tuple[Outputs, dict[str, float]]:
        """Logits on every part but the training data, and what they cost."""
        split = self.task.split(seed)
        if method.derive == "probe":
            return self.run_probes(seed, method.particles)
        if method.derive == "temperature":
            base = self.folder / "runs" / f"{method.of}-{seed}"
            outputs = read_outputs(base)
            logits, labels = outputs["validation"]
            temperature = fit_temperature(logits[0], labels)
            costs = _costs_of(base)
            return {name: (x / temperature, y) for name, (x, y) in outputs.items()}, costs
        if method.derive == "soup":
            base = self.folder / "runs" / f"{method.of}-{seed}"
            posterior = bella.load(base / "posterior", self.task.open(seed).network)
            self.batches(split["validation"][0])
            soup = Point(posterior.soup(), shared_prefix=self.entrance)
            costs = _costs_of(base) | {"trainable": 0, "bytes_on_disk": weight_bytes(soup.network)}
            return self.predict(soup, seed), costs
        posterior = self.posterior(seed, method)
        settings = self.settings | dict(method.settings)
        record = fit(
            posterior,
            self.loader(*split["train"], settings.get("batch_size", 32), shuffle=True),
            validation=self.loader(*split["validation"]),
            folder=place / "posterior",
            seed=seed,
            resume=False,
            progress=False,
            **settings,
        )
        (place / "posterior" / "checkpoint.pt").unlink(missing_ok=True)
        counted = cost(posterior)
        begun = time.perf_counter()
        outputs = self.predict(posterior, seed)
        return outputs, {
            "trainable": counted["trainable"],
            "bytes_on_disk": counted["bytes_on_disk"],
            "similarity": weight_similarity(posterior),
            "seconds_training": record.seconds,
            "seconds_predicting": time.perf_counter() - begun,
        }

    # ------------------------------------------------------------ parts

    def posterior(self, seed: int, method: Method) -> Posterior:
        """A fresh posterior for a method; linear heads start from probes."""
        opened = self.task.open(seed)
        heads = opened.defaults.modules_to_save
        posterior = bella.low_rank(
            opened.network,
            method.particles,
            self.task.rank,
            opened.defaults.target_modules,
            modules_to_save=heads,
            seed=seed,
            **(dict(self.task.build) | dict(method.build)),
        )
        if method is not FROZEN and len(heads) == 1:
            head = posterior.layers()[heads[0]]
            if isinstance(head, LinearCopies):
                start_heads(head, self.probes_of(seed, method.particles))
        return posterior

    def batches(self, pool: str) -> Batches:
        """From positions in a pool to a batch: what the shared prefix makes of the images, computed
        once; or the images, where the network shares no prefix or the data are random."""
        if pool not in self.pools:
            images = self.task.pools[pool]
            posterior = self.posterior(0, FROZEN).train()
            if is_fixed(posterior, images, torch.device("cpu")):
                self.pools[pool] = CachedPrefix(posterior, images, progress=self.bar).batch
                self.entrance = posterior.shared is not None and posterior.shared.entrances[0]
            else:
                self.pools[pool] = lambda rows: default_collate([images[i] for i in rows])
        return self.pools[pool]

    def loader(
        self, pool: str, positions: Sequence[int], batch_size: int = 64, *, shuffle: bool = False
    ) -> DataLoader:
        """Batches of some images of a pool."""
        return DataLoader(
            positions,  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=shuffle,
            collate_fn=self.batches(pool),
        )

    def predict(self, posterior: Posterior, seed: int) -> Outputs:
        """Every particle's logits on all parts but the training data."""
        found: Outputs = {}
        for part, place in self.task.split(seed).items():
            if part != "train":
                predictive, labels = collect(posterior, self.loader(*place))
                found[part] = (predictive.logits, labels)
        return found

    def features(self, part: str, seed: int) -> Features:
        """What the frozen network makes of one part."""
        pool, positions = self.task.split(seed)[part]
        if pool not in self.pool_features:
            posterior = self.posterior(0, FROZEN)
            everything = self.loader(pool, range(len(self.task.pools[pool])))
            self.pool_features[pool] = head_inputs(posterior, everything)
        x, y = self.pool_features[pool]
        return x[positions], y[positions]

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

    def run_probes(self, seed: int, count: int) -> tuple[Outputs, dict[str, float]]:
        """The probes' logits on all parts but the training data."""
        self.features("train", seed)  # the network's own pass is not the probes' time
        begun = time.perf_counter()
        probes = self.probes_of(seed, count)
        seconds = time.perf_counter() - begun
        outputs: Outputs = {}
        for part in self.task.split(seed):
            if part != "train":
                x, y = self.features(part, seed)
                outputs[part] = (torch.cat([probe.logits(x) for probe in probes]), y)
        size = sum(probe.weight.numel() + probe.bias.numel() for probe in probes)
        return outputs, {
            "trainable": size,
            "bytes_on_disk": 4 * size,
            "seconds_training": seconds,
            "seconds_predicting": 0.0,
        }


FROZEN = Method("frozen", "frozen network", 1, build={"b_std": 0.0})
"""What the shared prefix and the features are computed with: no method or seed changes them."""


def read_outputs(place: Path) -> Outputs:
    """The predictions that a run left in its folder.

    Raises:
        BellaError: there are none.
    """
    path = place / "predictions.safetensors"
    if not path.exists():
        raise BellaError(f"{place} holds no predictions: run the comparison again.")
    tensors = load_file(path)
    parts = {name.rpartition(".")[0] for name in tensors}
    return {part: (tensors[f"{part}.logits"], tensors[f"{part}.labels"]) for part in parts}


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a plain network's parameters."""
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _costs_of(place: Path) -> dict[str, float]:
    names = ("trainable", "bytes_on_disk", "seconds_training", "seconds_predicting")
    row = read_json(place / "figures.json")["figures"]
    return {name: row[name] for name in names}
