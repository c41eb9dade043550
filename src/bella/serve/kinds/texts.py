"""Texts, or pairs of texts: their classes, or a number each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field
from torch.utils.data import DataLoader

from bella.data.collate import collate
from bella.data.records import Records
from bella.errors import BellaError
from bella.prediction.numbers import GaussianPredictive
from bella.serve.kinds.base import Kind, check_count, check_texts, rounded
from bella.serve.line import Line
from bella.serve.shapes import Asked, Numbers, Predictions, Text


class TextPair(Asked):
    """A text, and the one beside it where the run was trained on pairs."""

    text: Text
    pair: Text | None = None


class AskedTexts(Asked):
    """Texts to predict."""

    texts: Annotated[list[Text | TextPair], Field(min_length=1)]


class OfRows(Kind):
    """A kind that reads rows by their columns, as its run's training did."""

    def tokenised(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Rows of the run's own columns as the network takes them.

        Raises:
            BellaError: one cannot be read.
        """
        records = Records("The request", tuple(rows[0]), rows)
        return self.run.tokenised(records, labelled=False)

    def said(self, items: Sequence[Any]) -> Any:
        """What the particles say of rows, in one pass."""
        joined = self.run.task.collate(self.run.asked.tokenizer) or collate
        loader: DataLoader = DataLoader(items, len(items), collate_fn=joined)  # type: ignore[arg-type]
        with self.drawing():
            facts = self.run.asked.facts
            return self.run.task.said(self.predicts, loader, facts, **self.run.options)


class Texts(OfRows):
    """The classes of texts."""

    name: ClassVar[str] = "text"
    answers: ClassVar[Any] = Predictions

    def router(self, line: Line) -> APIRouter:
        """``/v1/predict``."""
        router = APIRouter()

        @router.post("/v1/predict", response_model=self.answers)
        async def predict_texts(asked: AskedTexts, request: Request) -> Any:
            """What is said of each text, with its uncertainties."""

            def read() -> list[Any]:
                return self.read(asked.texts)

            return {"predictions": await line.ask(request, read)}

        return router

    @property
    def about(self) -> dict[str, Any]:
        """Whether texts come in pairs."""
        return {"pair": self.paired}

    @property
    def paired(self) -> bool:
        """Whether the run was trained on pairs."""
        return "pair" in self.run.asked.columns

    def read(self, texts: Sequence[str | TextPair]) -> list[Any]:
        """Texts as the network takes them.

        Raises:
            BellaError: pairs where the run has none, or the other way round; an empty text.
            RefusedError: too many of them, or too long ones.
        """
        check_count(texts, self.limits)
        pairs = [TextPair(text=text) if isinstance(text, str) else text for text in texts]
        check_texts([f"{one.text}{one.pair or ''}" for one in pairs], self.limits)
        for number, one in enumerate(pairs, 1):
            if self.paired != (one.pair is not None):
                raise BellaError(
                    f"Text {number} has {'a' if one.pair is not None else 'no'} second one, and "
                    f"the run was trained on {'pairs' if self.paired else 'single texts'}."
                )
            if not one.text.strip() or (one.pair is not None and not one.pair.strip()):
                raise BellaError(f"Text {number} is empty: write something.")
        columns = self.run.asked.columns
        rows = [
            {columns[role]: text for role, text in one.model_dump(exclude_none=True).items()}
            for one in pairs
        ]
        return list(self.tokenised(rows))

    def answer(self, items: Sequence[Any], key: Any) -> list[dict[str, Any]]:
        """One pass of all particles over these texts."""
        return self.class_rows(self.said(items).cpu(), self.run.classes)

    def trial(self) -> Any:
        """A short text."""
        words = "this is one of them"
        (item,) = self.read([TextPair(text=words, pair=words if self.paired else None)])
        return item


class Regressions(Texts):
    """Numbers of texts."""

    name: ClassVar[str] = "regression"
    answers: ClassVar[Any] = Numbers

    def answer(self, items: Sequence[Any], key: Any) -> list[dict[str, Any]]:
        """One pass of all particles over these texts, in the numbers' own units."""
        said: GaussianPredictive = self.said(items).cpu()
        low, high = said.interval(0.9)
        columns = {
            "mean": rounded(said.mean),
            "std": rounded(said.std),
            "low_90": rounded(low),
            "high_90": rounded(high),
            "aleatoric_std": rounded(said.aleatoric.sqrt()),
            "epistemic_std": rounded(said.epistemic.clamp_min(0).sqrt()),
            "entropy": rounded(said.entropy),
            "mutual_information": rounded(said.mutual_information),
        }
        means, stds = rounded(said.particle_means), rounded(said.particle_variances.sqrt())
        names = self.members(len(means))
        return [
            {name: values[i] for name, values in columns.items()}
            | {
                "votes": [
                    {"member": name, "mean": means[m][i], "std": stds[m][i]}
                    for m, name in enumerate(names)
                ]
            }
            for i in range(len(items))
        ]
