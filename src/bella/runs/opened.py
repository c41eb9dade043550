"""A run folder, opened: evaluate and predict with what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

import bella
from bella.data import ImageList, OnBadImage, Preprocess
from bella.data.images import LARGEST_SIDE
from bella.errors import BellaError
from bella.evaluation.decisions import Part
from bella.evaluation.evaluate import collect
from bella.files import read_sealed_json
from bella.host import device_named
from bella.interop.hub import FILES, local_folder
from bella.models import open_network
from bella.posterior import Posterior
from bella.prediction.mixture import Mixture, is_there, read_mixture
from bella.prediction.predict import in_precision, predict
from bella.prediction.predictive import Predictive
from bella.runs.evaluating import evaluate_run
from bella.runs.rows import write_rows
from bella.storage import said_wrong

MODEL = "model.json"

BATCH = 32
"""Images in one pass of a prediction."""


@dataclass(frozen=True)
class TrainedRun:
    """What a run folder holds, opened.

    Attributes:
        posterior: the particles on their network.
        classes: names of the classes.
        preprocess: from images to inputs.
        network: the network's name.
        draws: of a stochastic posterior, for each prediction.
        seed: of those draws.
        mixture: the particles pooled with readouts, where the run has such.
        workers: processes that read images; 0 reads them in this one.
        precision: of predictions, see `bella.predict`.
    """

    posterior: Posterior
    classes: tuple[str, ...]
    preprocess: Preprocess
    network: str
    draws: int = 1
    seed: int = 0
    workers: int = 0
    mixture: Mixture | None = None
    precision: str = "float32"

    @property
    def options(self) -> dict[str, Any]:
        """Of every prediction, see `bella.predict`."""
        return {"draws": self.draws, "precision": self.precision}

    @property
    def predicts(self) -> Posterior | Mixture:
        """What evaluates and predicts: the mixture, or the particles where there is none."""
        return self.posterior if self.mixture is None else self.mixture

    def evaluate(
        self,
        data: str | Path,
        ood: Sequence[str | Path] | str | Path | None = None,
        bar: Progress | None = None,
        on_bad_image: OnBadImage = "stop",
        **more: Any,
    ) -> dict[str, Any]:
        """All figures on a labelled folder or CSV; see `bella.runs.evaluating.evaluate_run`."""
        return evaluate_run(self, data, ood, bar, on_bad_image, **more)

    def collect(self, images: Dataset, bar: Progress | None = None) -> Part:
        """The predictive of labelled images, and their labels."""
        with self.drawing():
            return collect(self.predicts, self.loader(images), progress=bar, **self.options)

    def predict(
        self,
        images: Sequence[str | Path],
        bar: Progress | None = None,
        on_bad_image: OnBadImage = "stop",
    ) -> Predictions:
        """The predictive of image files and folders."""
        listed = ImageList(images, self.preprocess, on_bad_image)
        loader = self.loader(listed)
        task = bar.add_task("predicting", total=len(loader)) if bar else None
        parts = []
        device = next(self.posterior.network.parameters()).device
        with self.drawing(), ExitStack() as stack:
            for batch in loader:
                parts.append(predict(self.predicts, batch.to(device), **self.options).cpu())
                if len(parts) == 1:  # the first batch has decided: cast the base once for all
                    stack.enter_context(in_precision(self.predicts, self.precision))
                if bar and task is not None:
                    bar.advance(task)
        return Predictions(listed.paths, Predictive.cat(parts), self.classes)

    def loader(self, images: Dataset) -> DataLoader:
        """Batches of images, in their order."""
        return DataLoader(images, BATCH, num_workers=self.workers)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draws of the run's seed inside the block: the same images are told the same twice."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            yield


@dataclass(frozen=True)
class Predictions:
    """Images with what the particles say of them."""

    paths: list[Path]
    predictive: Predictive
    classes: tuple[str, ...]

    shown: ClassVar[Sequence[str]] = [
        "image",
        "class",
        "probability",
        "entropy",
        "mutual_information",
        "rank",
    ]
    """Columns that a terminal has room for."""
    examples: ClassVar[str] = "images"

    def rows(self) -> list[dict[str, Any]]:
        """One row an image; rank 1 is the image the network is least sure of (by entropy). The
        probability of each class stands under ``p(NAME)``."""
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
                **(
                    {}
                    if predictive.novelty is None
                    else {"novelty": round(float(predictive.novelty[i]), 6)}
                ),
                "rank": int(ranks[i]),
                **{
                    f"p({name})": round(float(predictive.probs[i, k]), 6)
                    for k, name in enumerate(self.classes)
                },
            }
            for i, path in enumerate(self.paths)
        ]

    def write(self, path: str | Path) -> None:
        """Write the rows, see `bella.runs.rows.write_rows`."""
        write_rows(path, self.rows())


def open_run(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    workers: int = 0,
    own_code: bool = False,
    precision: str = "float32",
) -> TrainedRun:
    """Open what `train` left in a folder, also while it trains or after it was stopped.

    Args:
        folder: of the run, or ``hf:owner/name`` for one on the hub.
        device: where to run, such as ``cpu`` or ``cuda``; the accelerator if there is one.
        workers: processes that read images; 0 reads them in this one.
        own_code: whether a network that is made by ``package.module:function`` may be; a run
            folder may be anybody's.
        precision: of predictions, see `bella.predict`.

    Raises:
        BellaError: no run folder, one whose network cannot be opened any more, or no such device.
    """
    place = device_named(device)
    folder = local_folder(folder, *FILES)
    model = read_model(folder)
    preprocess = Preprocess.from_dict(model.preprocess).plain()
    opened = open_network(
        model.network,
        len(model.classes),
        model.image_size,
        model.seed,
        own_code=own_code,
        quantised=model.quantised,
    )
    posterior = bella.load(folder, opened.network)
    posterior.eval().to(place)
    mixture = read_mixture(folder, posterior) if is_there(folder) else None
    return TrainedRun(
        posterior,
        tuple(model.classes),
        preprocess,
        model.network,
        model.draws,
        model.seed,
        workers,
        mixture,
        precision,
    )


class Model(BaseModel):
    """The fields of ``model.json``; a later version may add some."""

    model_config = ConfigDict(strict=True, extra="allow")

    network: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")
    quantised: str | None = None
    classes: list[str] = Field(min_length=1)
    image_size: int | None = Field(ge=1, le=LARGEST_SIDE)
    seed: int = Field(ge=0, lt=2**63)
    preprocess: dict[str, Any]
    draws: int = Field(1, ge=1, le=10_000)  # runs before recipes have none
    skipped_images: int = Field(0, ge=0)


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
