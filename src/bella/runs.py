"""A user's own run: images in, a run folder with a posterior out, and back again from the folder.

The folder holds all that `open_run` needs: ``config.yaml`` (what was asked for), ``model.json``
(network, classes, preprocessing) and the posterior.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

import bella
from bella.console import progress_bar
from bella.data import ImageList, OnBadImage, Preprocess, open_images, splits
from bella.data.images import LARGEST_SIDE
from bella.errors import BellaError
from bella.evaluation.evaluate import evaluate
from bella.files import read_sealed_json, write_json, write_sealed_json, write_whole
from bella.models import open_network
from bella.posterior import Posterior
from bella.prediction.predict import predict
from bella.prediction.predictive import Predictive
from bella.report.pictures import curves
from bella.storage import said_wrong
from bella.training.checkpoint import CHECKPOINT
from bella.training.fit import fit
from bella.training.settings import Settings, checked, read_yaml

MODEL = "model.json"
CONFIG = "config.yaml"


class RunConfig(Settings):
    """What ``bella fit`` takes: the settings of `bella.fit`, and what to train on what.

    Attributes:
        data: folder with one sub-folder a class (or train, val and test with such), or a CSV of
            path,label.
        network: ``efficientnet-lite0``, ``hf:NAME`` or ``timm:NAME``.
        image_size: pixels; the network's own by default.
        particles: how many.
        rank: of each low-rank change.
        alpha: see `bella.low_rank`.
        target_modules: layers to adapt; the network's defaults if not given.
        modules_to_save: heads; the network's default if not given.
        gain: factor on the start of A.
        head_init: ``copy`` or ``reset``.
        on_bad_image: ``stop`` at an image that cannot be read, or ``skip`` and count such.
    """

    data: str
    network: str = "efficientnet-lite0"
    image_size: int | None = Field(None, ge=1)
    particles: int = Field(5, ge=1)
    rank: int = Field(4, ge=1)
    alpha: float | None = None
    target_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    gain: float = 1.0
    head_init: Literal["copy", "reset"] = "copy"
    on_bad_image: OnBadImage = "stop"


class Model(BaseModel):
    """The fields of ``model.json``; a later version may add some."""

    model_config = ConfigDict(strict=True, extra="allow")

    network: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")
    classes: list[str] = Field(min_length=1)
    image_size: int | None = Field(ge=1, le=LARGEST_SIDE)
    seed: int = Field(ge=0, lt=2**63)
    preprocess: dict[str, Any]


def read_config(path: str | Path | None, flags: dict[str, Any]) -> RunConfig:
    """A YAML file's settings with the flags that were given over them.

    Raises:
        BellaError: no such file, no data, an unknown setting or a value out of range.
    """
    values = read_yaml(path) if path is not None else {}
    for name, value in flags.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] |= value  # one option of the transport leaves the others
        elif value is not None:
            values[name] = value
    if "data" not in values:
        raise BellaError(
            "Nothing to train on: give --data FOLDER, or 'data:' in the configuration."
        )
    return checked(RunConfig, values)


def train(
    config: RunConfig, folder: str | Path, *, resume: bool = True, progress: bool = True
) -> dict[str, float]:
    """Train a posterior on a user's images and evaluate it on their test part.

    Args:
        config: what to do.
        folder: the run folder.
        resume: continue what the folder holds; see `bella.fit`.
        progress: show bars.

    Returns:
        Figures on the test part, also in ``figures.json``.

    Raises:
        BellaError: the folder holds another run; or see `bella.fit`, `bella.low_rank` and
            `bella.data.splits`.
    """
    folder = Path(folder)
    if resume:
        _refuse_another(config, folder)
    classes = splits(config.data, Preprocess(32), seed=config.seed)["train"].classes
    opened = open_network(config.network, len(classes), config.image_size, config.seed)
    parts = splits(
        config.data, opened.preprocess, classes, seed=config.seed, on_bad_image=config.on_bad_image
    )
    posterior = bella.low_rank(
        opened.network,
        config.particles,
        config.rank,
        opened.defaults.target_modules if config.target_modules is None else config.target_modules,
        alpha=config.alpha,
        modules_to_save=(
            opened.defaults.modules_to_save
            if config.modules_to_save is None
            else config.modules_to_save
        ),
        gain=config.gain,
        head_init=config.head_init,
        seed=config.seed,
    )
    write_sealed_json(
        folder / MODEL,
        {
            "network": config.network,
            "classes": list(classes),
            "image_size": config.image_size,
            "seed": config.seed,
            "preprocess": opened.preprocess.to_dict(),
        },
    )
    asked = yaml.safe_dump(config.model_dump(), sort_keys=False)
    write_whole(folder / CONFIG, lambda path: path.write_text(asked))
    settings = {name: getattr(config, name) for name in Settings.model_fields}
    record = fit(
        posterior,
        parts["train"],
        validation=parts["validation"],
        folder=folder,
        resume=resume,
        progress=progress,
        **settings,
    )
    curves(folder / "curves.png", record.history)
    with progress_bar(progress) as bar:
        found = evaluate(posterior, DataLoader(parts["test"], config.batch_size), progress=bar)
    write_json(folder / "figures.json", found)
    return found


def _refuse_another(config: RunConfig, folder: Path) -> None:
    """A run is continued as it was begun: a gain or a scale leaves no trace in a checkpoint."""
    if not (folder / CHECKPOINT).exists():
        return
    asked, found = config.model_dump(), read_yaml(folder / CONFIG)
    changed = [name for name in asked if asked[name] != found.get(name)]
    if changed:
        raise BellaError(
            f"{folder} holds a run with other settings ({', '.join(changed)}): name another "
            "folder, or begin anew with --fresh (resume=False)."
        )


@dataclass(frozen=True)
class TrainedRun:
    """What a run folder holds, opened.

    Attributes:
        posterior: the particles on their network.
        classes: names of the classes.
        preprocess: from images to inputs.
    """

    posterior: Posterior
    classes: tuple[str, ...]
    preprocess: Preprocess

    def evaluate(
        self,
        data: str | Path,
        ood: str | Path | None = None,
        bar: Progress | None = None,
        on_bad_image: OnBadImage = "stop",
    ) -> dict[str, float]:
        """All figures on a labelled folder or CSV; ``ood`` holds images of another kind."""
        labelled = open_images(data, self.preprocess, self.classes, on_bad_image=on_bad_image)
        loader = DataLoader(labelled, 32)
        other: Any = None
        if ood is not None:
            images = ImageList(ood, self.preprocess, on_bad_image)
            other = DataLoader(_Unlabelled(images), 32)
        return evaluate(self.posterior, loader, ood=other, progress=bar)

    def predict(
        self,
        images: Sequence[str | Path],
        bar: Progress | None = None,
        on_bad_image: OnBadImage = "stop",
    ) -> Predictions:
        """The predictive of image files and folders."""
        listed = ImageList(images, self.preprocess, on_bad_image)
        loader = DataLoader(listed, 32)
        task = bar.add_task("predicting", total=len(loader)) if bar else None
        parts = []
        device = next(self.posterior.network.parameters()).device
        for batch in loader:
            parts.append(predict(self.posterior, batch.to(device)))
            if bar and task is not None:
                bar.advance(task)
        return Predictions(listed.paths, Predictive.cat(parts), self.classes)


class _Unlabelled(Dataset[tuple[torch.Tensor, int]]):
    """Images without labels as items with the label -1, which `evaluate` reads as none."""

    def __init__(self, images: ImageList):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], -1


@dataclass(frozen=True)
class Predictions:
    """Images with what the particles say of them."""

    paths: list[Path]
    predictive: Predictive
    classes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row an image; rank 1 is the image the network is least sure of (by entropy)."""
        predictive = self.predictive
        ranks = torch.empty(len(self.paths), dtype=torch.long)
        ranks[predictive.entropy.argsort(descending=True, stable=True).cpu()] = torch.arange(
            1, len(self.paths) + 1
        )
        return [
            {
                "image": str(path),
                "class": self.classes[int(predictive.predictions[i])],
                "probability": round(float(predictive.confidence[i]), 6),
                "entropy": round(float(predictive.entropy[i]), 6),
                "mutual_information": round(float(predictive.mutual_information[i]), 6),
                "rank": int(ranks[i]),
            }
            for i, path in enumerate(self.paths)
        ]

    def write(self, path: str | Path) -> None:
        """Write the rows as CSV in UTF-8; names of files that are not UTF-8 keep their bytes."""
        rows = self.rows()

        def write(unfinished: Path) -> None:
            with unfinished.open(
                "w", newline="", encoding="utf-8", errors="surrogateescape"
            ) as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

        write_whole(Path(path), write)


def open_run(folder: str | Path) -> TrainedRun:
    """Open what `train` left in a folder.

    Raises:
        BellaError: no run folder, or one whose network cannot be opened any more.
    """
    folder = Path(folder)
    model = read_model(folder)
    preprocess = Preprocess.from_dict(model.preprocess).plain()
    opened = open_network(model.network, len(model.classes), model.image_size, model.seed)
    posterior = bella.load(folder, opened.network)
    posterior.eval()
    return TrainedRun(posterior, tuple(model.classes), preprocess)


def read_model(folder: Path) -> Model:
    """What `train` wrote to ``model.json``.

    Raises:
        BellaError: it is missing or damaged.
    """
    content = read_sealed_json(folder / MODEL)
    try:
        model = Model.model_validate(content)
    except ValidationError as error:
        raise BellaError(f"{folder / MODEL} is damaged ({said_wrong(error)}): fit again.") from None
    if len(set(model.classes)) < len(model.classes):
        raise BellaError(f"{folder / MODEL} is damaged (two classes of one name): fit again.")
    return model
