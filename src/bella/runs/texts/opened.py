"""A run folder on texts, opened: evaluate and predict with what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

import bella
from bella.data.collate import collate
from bella.data.opening import is_set, shifts_of
from bella.data.records import Records, read_records
from bella.errors import BellaError
from bella.evaluation.decisions import Part
from bella.evaluation.evaluate import collect
from bella.files import read_sealed_json
from bella.host import device_named
from bella.posterior import Posterior
from bella.prediction.mixture import Mixture, is_there, read_mixture
from bella.runs.evaluating import figures_of, names_of_other
from bella.runs.rows import write_rows
from bella.runs.texts.base import Asked, TextTask, digest_of, labelled_if_known
from bella.runs.texts.config import TextConfig, refuse_columns
from bella.runs.texts.tasks import task_named
from bella.storage import said_wrong
from bella.training.settings import checked

BATCH = 32
"""Rows in one pass of a prediction."""


@dataclass(frozen=True)
class TextRun:
    """What a run folder on texts holds, opened.

    Attributes:
        posterior: the particles on their network.
        task: what it does.
        asked: how it reads rows.
        network: the network's name.
        draws: of a stochastic posterior, for each prediction.
        seed: of those draws, and of what was split for the training.
        mixture: the particles pooled with readouts, where the run has such.
        precision: of predictions, see `bella.predict`.
        named: columns that somebody named for what is to be predicted, see `by_columns`.
    """

    posterior: Posterior
    task: TextTask
    asked: Asked
    network: str
    draws: int = 1
    seed: int = 0
    mixture: Mixture | None = None
    precision: str = "float32"
    named: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Of every prediction, see `bella.predict`."""
        return {"draws": self.draws, "precision": self.precision}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where there are any."""
        return tuple(self.asked.facts.get("classes", ()))

    @property
    def predicts(self) -> Posterior | Mixture:
        """What evaluates and predicts: the mixture, or the particles where there is none."""
        return self.posterior if self.mixture is None else self.mixture

    def evaluate(
        self,
        data: str | Path,
        ood: Sequence[str | Path] | str | Path | None = None,
        bar: Progress | None = None,
        on_bad_image: str = "stop",
        *,
        folder: str | Path | None = None,
        calibrate: str | Path | None = None,
        promises: dict[str, Any] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """All figures on labelled rows; see `bella.runs.evaluating.figures_of`.

        Args:
            data: a file of rows, or the name of a set: its test part as the run's seed draws it,
                and its shifts.
            ood: rows of other kinds, whose labels count where all of them are known. One carries
                the name ``ood`` in the figures, several that of their file.
            bar: a display to show bars in.
            on_bad_image: of runs on images.
            folder: where a set by name lies.
            calibrate: rows that the run was not trained on, to promise by.
            promises: see `bella.evaluation.decisions.decisions`.
            **more: what runs on images alone have.

        Raises:
            BellaError: a column is missing (the sentence lists those that are there), a row cannot
                be read, or something is asked that runs on images or on classes alone have.
        """
        if more:
            raise BellaError(
                f"{next(iter(more))} is for runs on images: leave it out for a run on texts."
            )
        refuse_bad_images(on_bad_image)
        if calibrate is not None and not self.task.classes:
            raise BellaError(
                f"calibrate promises by classes, and task {self.task.name} has none: leave it out."
            )
        read = self.read(data, folder)
        known = test_of(read)
        tokens = self.tokenised(known, labelled=True)
        named = names_of_other(ood, taken=[Path(data).stem, *shifts_of(read)])
        others = {name: test_of(self.read(path)) for name, path in named.items()}
        others |= {name: read[name] for name in shifts_of(read)}
        foreign = {name: self.other(some) for name, some in others.items()}
        if not self.task.classes:
            return self.figures(tokens, foreign, bar)
        unseen = None
        if calibrate is not None:
            held_out = joined(self.read(calibrate))
            refuse_shared_rows(held_out, known)
            unseen = self.tokenised(held_out, labelled=True)
        return figures_of(
            self.collect(tokens, bar),
            {name: self.collect(some, bar) for name, some in foreign.items()},
            Path(data).stem,
            None if unseen is None else self.collect(unseen, bar),
            promises,
        )

    def by_columns(self, columns: Mapping[str, str]) -> TextRun:
        """The same run, which reads rows by these columns.

        Args:
            columns: names by what they are for. Labelled or predicted rows must have them; rows of
                other kinds are read by them where they do.

        Raises:
            BellaError: the task reads nothing of that name.
        """
        refuse_columns(dict(columns), tuple(self.task.roles), self.task.name)
        return replace(self, named=columns)

    def read(self, data: str | Path, folder: str | Path | None = None) -> dict[str, Records]:
        """The parts of a file; or of a set by name, drawn by the run's seed as in its training."""
        return read_records(data, folder=folder, seed=self.seed)

    def other(self, records: Records) -> Dataset:
        """Rows of another kind as tokens, with their labels where all of them are known."""
        return labelled_if_known(self.task, records, self.reading(records, labelled=False))

    def collect(self, data: Dataset, bar: Progress | None = None) -> Part:
        """The predictive of tokenised rows, and their labels."""
        with self.drawing():
            return collect(self.predicts, self.loader(data), progress=bar, **self.options)

    def figures(
        self, data: Dataset, ood: Mapping[str, Dataset], bar: Progress | None = None
    ) -> dict[str, float]:
        """The plain figures on tokenised rows, and on those of other kinds by name."""
        with self.drawing():
            return self.task.evaluate(
                self.predicts,
                self.loader(data),
                {name: self.loader(some) for name, some in ood.items()},
                self.asked.facts,
                progress=bar,
                **self.options,
            )

    def predict(
        self,
        data: Sequence[str | Path] | str | Path,
        bar: Progress | None = None,
        on_bad_image: str = "stop",
    ) -> TextPredictions:
        """What the particles say of every row of a file, or of the test part of a set by name;
        answers need not be there.

        Raises:
            BellaError: see `evaluate`; or several files.
        """
        refuse_bad_images(on_bad_image)
        given = [data] if isinstance(data, str | Path) else list(data)
        if len(given) != 1:
            raise BellaError(f"A run on texts predicts one file of rows: {len(given)} were given.")
        read = self.read(given[0])
        records = test_of(read) if is_set(str(given[0])) else joined(read)
        loader = self.loader(self.tokenised(records, labelled=False))
        with self.drawing():
            said = self.task.predict(self.predicts, loader, self.asked.facts, **self.options)
        return TextPredictions(records, said)

    def tokenised(self, records: Records, *, labelled: bool) -> Dataset:
        """Rows as tokens.

        Raises:
            BellaError: see `TextTask.tokenise`, or a column that was named is not there.
        """
        for names in self.named.values():
            for name in names.split(","):
                records.column(name)
        return self.task.tokenise(
            records, self.reading(records, labelled=labelled), labelled=labelled
        )

    def reading(self, records: Records, *, labelled: bool) -> Asked:
        """How rows are read: columns by the names that they had in training, if they are there."""
        asked = {
            role: name
            for role, name in {**self.asked.columns, **self.named}.items()
            if all(column in records.columns for column in name.split(","))
        }
        return replace(self.asked, columns=self.task.columns(records, asked, labelled=labelled))

    def loader(self, data: Dataset) -> DataLoader:
        """Batches of rows, in their order."""
        joined = self.task.collate(self.asked.tokenizer) or collate
        return DataLoader(data, BATCH, collate_fn=joined)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draws of the run's seed inside the block: the same rows are told the same twice."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            yield


@dataclass(frozen=True)
class TextPredictions:
    """Rows with what the particles say of them."""

    records: Records
    said: list[dict[str, Any]]

    examples: ClassVar[str] = "rows"

    def rows(self) -> list[dict[str, Any]]:
        """Each row's own cells, then what is said; rank 1 is the row that is least certain (by
        entropy). A cell by the name of something that is said keeps it with ``_given`` after it."""
        entropy = torch.tensor([row["entropy"] for row in self.said])
        ranks = torch.empty(len(entropy), dtype=torch.long)
        ranks[entropy.argsort(descending=True, stable=True)] = torch.arange(1, len(entropy) + 1)
        names = {*self.said[0], "rank"}
        return [
            {(f"{name}_given" if name in names else name): value for name, value in row.items()}
            | said
            | {"rank": int(rank)}
            for row, said, rank in zip(self.records.rows, self.said, ranks, strict=True)
        ]

    @property
    def shown(self) -> tuple[str, ...]:
        """Columns that a terminal has room for."""
        columns = [name for name in self.said[0] if not name.startswith("p(")]
        first = next(iter(self.records.columns))
        return (f"{first}_given" if first in {*self.said[0], "rank"} else first, *columns, "rank")

    def write(self, path: str | Path) -> None:
        """Write the rows, see `bella.runs.rows.write_rows`."""
        write_rows(path, self.rows())


def refuse_bad_images(on_bad_image: str) -> None:
    """Refuse to skip images where there are none.

    Raises:
        BellaError: it is asked for.
    """
    if on_bad_image != "stop":
        raise BellaError(
            f"on_bad_image={on_bad_image!r} is for runs on images: leave it out for a run on texts."
        )


def test_of(parts: Mapping[str, Records]) -> Records:
    """The test part of data that are divided, else all of them."""
    return parts["test"] if "test" in parts else joined(parts)


def refuse_shared_rows(unseen: Records, known: Records) -> None:
    """Refuse rows that are to be promised by and tried on at once.

    Raises:
        BellaError: some are.
    """
    both = {digest_of({"": unseen.select([i])}) for i in range(len(unseen))}
    both &= {digest_of({"": known.select([i])}) for i in range(len(known))}
    if both:
        raise BellaError(
            f"{len(both)} of the calibration rows are among those to evaluate on: what a promise "
            "is made on cannot try it."
        )


def joined(parts: Mapping[str, Records]) -> Records:
    """All rows, whatever parts there are."""
    first = next(iter(parts.values()))
    return Records(first.name, first.columns, [row for part in parts.values() for row in part.rows])


class Model(BaseModel):
    """The fields of ``model.json``; a later version may add some."""

    model_config = ConfigDict(strict=True, extra="allow")

    task: str
    network: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")
    quantised: str | None = None
    columns: dict[str, str]
    facts: dict[str, Any]
    max_length: int = Field(ge=2)
    options_by: str
    variance: str
    seed: int = Field(ge=0, lt=2**63)
    draws: int = Field(1, ge=1, le=10_000)


def open_text_run(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> TextRun:
    """Open what `train_text` left in a folder, also while it trains or after it was stopped.

    Args:
        folder: of the run.
        device: where to run, such as ``cpu`` or ``cuda``; the accelerator if there is one.
        precision: of predictions, see `bella.predict`.

    Raises:
        BellaError: no run folder, a damaged one, or one whose network cannot be opened any more.
    """
    place, folder = device_named(device), Path(folder)
    content = read_sealed_json(folder / "model.json")
    try:
        model = Model.model_validate(content)
        own = {"task", "network", "quantised", "columns", "max_length", "options_by", "variance"}
        config = checked(TextConfig, {"data": ""} | model.model_dump(include={*own, "seed"}))
    except ValidationError as error:
        raise BellaError(
            f"{folder / 'model.json'} is damaged ({said_wrong(error)}): fit again."
        ) from None
    task = task_named(model.task)
    opened = task.open(config, model.facts)
    posterior = bella.load(folder, opened.network)
    posterior.eval().to(place)
    asked = Asked(opened.tokenizer, model.columns, model.facts, model.max_length, model.options_by)
    mixture = read_mixture(folder, posterior) if is_there(folder) else None
    return TextRun(
        posterior, task, asked, model.network, model.draws, model.seed, mixture, precision
    )
