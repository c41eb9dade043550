"""A run folder on texts, opened: evaluate and predict with what it holds."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

import bella
from bella.data.collate import collate
from bella.data.records import Records, read_records
from bella.errors import BellaError
from bella.files import plain, read_sealed_json, write_whole
from bella.host import device_named
from bella.posterior import Posterior
from bella.runs.texts.base import Asked, TextTask
from bella.runs.texts.config import TextConfig
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
        seed: of those draws.
    """

    posterior: Posterior
    task: TextTask
    asked: Asked
    network: str
    draws: int = 1
    seed: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where there are any."""
        return tuple(self.asked.facts.get("classes", ()))

    def evaluate(
        self,
        data: str | Path,
        ood: Sequence[str | Path] | str | Path | None = None,
        bar: Progress | None = None,
        on_bad_image: str = "stop",
        **more: Any,
    ) -> dict[str, float]:
        """All figures on a file of labelled rows; ``ood`` holds rows of another kind, whose labels
        count where all of them are known.

        Raises:
            BellaError: a column is missing (the sentence lists those that are there), a row cannot
                be read, or something is asked that runs on images alone have.
        """
        if more:
            raise BellaError(
                f"{next(iter(more))} is for runs on images: leave it out for a run on texts."
            )
        if ood is not None and not isinstance(ood, str | Path):
            if len(ood) > 1:
                raise BellaError("A run on texts takes rows of one other kind: give ood once.")
            ood = ood[0] if ood else None
        known = self.tokenised(_test_of(data), labelled=True)
        foreign = None
        if ood is not None:
            other = _test_of(ood)
            try:
                foreign = self.tokenised(other, labelled=True)
            except BellaError:
                foreign = self.tokenised(other, labelled=False)
        return self.figures(known, foreign, bar)

    def figures(
        self, data: Dataset, ood: Dataset | None = None, bar: Progress | None = None
    ) -> dict[str, float]:
        """All figures on tokenised rows."""
        with self.drawing():
            return self.task.evaluate(
                self.posterior,
                self.loader(data),
                None if ood is None else self.loader(ood),
                self.asked.facts,
                draws=self.draws,
                progress=bar,
            )

    def predict(
        self,
        data: Sequence[str | Path] | str | Path,
        bar: Progress | None = None,
        on_bad_image: str = "stop",
    ) -> TextPredictions:
        """What the particles say of every row of a file; answers need not be there.

        Raises:
            BellaError: see `evaluate`; or several files.
        """
        given = [data] if isinstance(data, str | Path) else list(data)
        if len(given) != 1:
            raise BellaError(f"A run on texts predicts one file of rows: {len(given)} were given.")
        records = all_of(given[0])
        loader = self.loader(self.tokenised(records, labelled=False))
        with self.drawing():
            said = self.task.predict(self.posterior, loader, self.asked.facts, draws=self.draws)
        return TextPredictions(records, said)

    def tokenised(self, records: Records, *, labelled: bool) -> Dataset:
        """Rows as tokens; columns by the names that they had in training, if they are there."""
        asked = {
            role: name
            for role, name in self.asked.columns.items()
            if all(column in records.columns for column in name.split(","))
        }
        columns = self.task.columns(records, asked, labelled=labelled)
        own = Asked(
            self.asked.tokenizer,
            columns,
            self.asked.facts,
            self.asked.max_length,
            self.asked.options_by,
        )
        return self.task.tokenise(records, own, labelled=labelled)

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
        """Write the rows as CSV, or as JSON lines where the name ends so.

        Raises:
            BellaError: another ending.
        """
        path = Path(path)
        rows = self.rows()

        def write(unfinished: Path) -> None:
            with unfinished.open("w", newline="", encoding="utf-8") as file:
                if path.suffix.lower() in (".jsonl", ".ndjson"):
                    for row in rows:
                        file.write(json.dumps(plain(row), ensure_ascii=False, default=str) + "\n")
                    return
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(
                    {
                        name: json.dumps(cell) if isinstance(cell, list | dict) else cell
                        for name, cell in row.items()
                    }
                    for row in rows
                )

        if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
            raise BellaError(f"{path}: predictions are written as .csv or .jsonl.")
        write_whole(path, write)


def _test_of(data: str | Path) -> Records:
    """The test part of a file that is divided, else all of it."""
    parts = read_records(data)
    return parts["test"] if "test" in parts else _joined(parts)


def all_of(data: str | Path) -> Records:
    """All rows of a file, whatever parts it has."""
    return _joined(read_records(data))


def _joined(parts: dict[str, Records]) -> Records:
    first = next(iter(parts.values()))
    return Records(first.name, first.columns, [row for part in parts.values() for row in part.rows])


class Model(BaseModel):
    """The fields of ``model.json``; a later version may add some."""

    model_config = ConfigDict(strict=True, extra="allow")

    task: str
    network: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")
    columns: dict[str, str]
    facts: dict[str, Any]
    max_length: int = Field(ge=2)
    options_by: str
    variance: str
    seed: int = Field(ge=0, lt=2**63)
    draws: int = Field(1, ge=1, le=10_000)


def open_text_run(folder: str | Path, *, device: str | torch.device | None = None) -> TextRun:
    """Open what `train_text` left in a folder, also while it trains or after it was stopped.

    Args:
        folder: of the run.
        device: where to run, such as ``cpu`` or ``cuda``; the accelerator if there is one.

    Raises:
        BellaError: no run folder, a damaged one, or one whose network cannot be opened any more.
    """
    place, folder = device_named(device), Path(folder)
    content = read_sealed_json(folder / "model.json")
    try:
        model = Model.model_validate(content)
        own = ("task", "network", "columns", "max_length", "options_by", "variance", "seed")
        config = checked(TextConfig, {"data": ""} | model.model_dump(include=set(own)))
    except ValidationError as error:
        raise BellaError(
            f"{folder / 'model.json'} is damaged ({said_wrong(error)}): fit again."
        ) from None
    task = task_named(model.task)
    opened = task.open(config, model.facts)
    posterior = bella.load(folder, opened.network)
    posterior.eval().to(place)
    asked = Asked(opened.tokenizer, model.columns, model.facts, model.max_length, model.options_by)
    return TextRun(posterior, task, asked, model.network, model.draws, model.seed)
