"""A run on questions about pictures, opened: answer, evaluate and predict with what it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import bella
from bella import metrics
from bella.data.images import LARGEST_SIDE, load_image
from bella.data.opening import is_set
from bella.data.records import read_records
from bella.errors import BellaError
from bella.evaluation.similarity import weight_similarities
from bella.files import read_sealed_json, shortened, write_json
from bella.generation.texts import left_padded
from bella.host import device_named
from bella.metrics import vqa
from bella.models.seeing import Seeing, open_seeing, projector_of
from bella.posterior import Posterior
from bella.precision import precision_for
from bella.prediction.predict import in_precision
from bella.runs.opened import MODEL
from bella.runs.rows import write_rows
from bella.runs.vqa.questions import Question, of_records, prompt_tokens, read_questions
from bella.runs.writing import write_answers
from bella.storage import said_wrong

BATCH = 64
"""Questions that are answered at once."""
PROJECTOR = "projector.safetensors"
ANSWERS = "answers.jsonl"
SIMILARITY = "similarity.json"
FIGURES = "figures.json"


@dataclass(frozen=True)
class VqaRun:
    """What a run folder on questions about pictures holds, opened.

    Attributes:
        posterior: the particles on their network.
        seeing: the network with what reads for it.
        prompt: with ``<image>`` and ``{question}``.
        columns: of files of questions, by what they are for.
        answer_tokens: how many an answer has at most.
        precision: in which answers are written, see `bella.in_precision`.
    """

    posterior: Posterior
    seeing: Seeing
    prompt: str
    columns: dict[str, str]
    answer_tokens: int
    precision: str = "float32"

    classes: ClassVar[tuple[str, ...]] = ()

    def answer(
        self, questions: Sequence[Question], bar: Progress | None = None, batch_size: int = BATCH
    ) -> list[dict[str, Any]]:
        """Every question's row with its answer and what the particles think of it.

        The answer is written greedily from the averaged next-token distribution. ``entropy`` is the
        mean over its tokens of that distribution's entropy (paper, appendix F, equation 7) and
        ``mutual_information`` that of the tokens' mutual information, both in nats. Where people
        answered, ``accuracy``, ``exact_match`` and ``human_confidence`` follow; see
        `bella.metrics.vqa`.

        Raises:
            BellaError: a picture that cannot be read.
        """
        task = bar.add_task("answering", total=len(questions)) if bar else None
        rows: list[dict[str, Any]] = []
        for first in range(0, len(questions), batch_size):
            some = questions[first : first + batch_size]
            prompts = [torch.tensor(prompt_tokens(one, self.seeing, self.prompt)) for one in some]
            ids, mask = left_padded(prompts, self.seeing.tokenizer.pad_token_id)
            pictures = torch.stack([self.seeing.preprocess(load_image(one.image)) for one in some])
            with in_precision(self.posterior, self.precision) as chosen, chosen.autocast():
                weight = next(self.posterior.network.parameters())
                said: Any = self.posterior.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    pixel_values=pictures.to(weight.dtype),
                    tokenizer=self.seeing.tokenizer,
                    max_new_tokens=self.answer_tokens,
                    do_sample=False,
                )
            for one, found in zip(some, said.rows(), strict=True):
                answer = found["answer"].strip()
                row = {
                    **one.row(),
                    "answer": answer,
                    "log_prob": found["log_prob"],
                    "entropy": found["entropy"],
                    "mutual_information": found["mutual_information"],
                }
                rows.append(row | (vqa.judged(answer, one.people) if one.people else {}))
            if bar and task is not None:
                bar.advance(task, len(some))
        if bar and task is not None:
            bar.remove_task(task)
        return rows

    def evaluate(
        self,
        data: str | Path,
        ood: Sequence[str | Path] | str | Path | None = None,
        bar: Progress | None = None,
        on_bad_image: str = "stop",
        **more: Any,
    ) -> dict[str, float]:
        """All figures on the test part of data by name, in a folder, or on a file of questions.

        Raises:
            BellaError: see `bella.runs.vqa.questions.read_questions`; or what runs on images alone
                have.
        """
        if more or ood:
            name = next(iter(more), "ood")
            raise BellaError(f"{name} is for runs on images: leave it out for questions.")
        return figures(self.answer(self.questions(str(data)), bar))

    def questions(self, data: str, *, labelled: bool = True) -> list[Question]:
        """The questions of a file, or the test part of a set."""
        if Path(data).is_dir() or is_set(data):
            return read_questions(data)["test"]
        parts = read_records(data)
        chosen = [parts["test"]] if labelled and "test" in parts else list(parts.values())
        first = chosen[0]
        there = {role: name for role, name in self.columns.items() if name in first.columns}
        return [one for part in chosen for one in of_records(part, there, labelled=labelled)]

    def predict(
        self,
        data: Sequence[str | Path] | str | Path,
        bar: Progress | None = None,
        on_bad_image: str = "stop",
    ) -> VqaPredictions:
        """The answers to a file of questions, or to a set's test questions.

        Raises:
            BellaError: several files, or see `evaluate`.
        """
        given = [data] if isinstance(data, str | Path) else list(data)
        if len(given) != 1:
            raise BellaError(f"Questions come in one file: {len(given)} were given.")
        return VqaPredictions(self.answer(self.questions(str(given[0]), labelled=False), bar))


@dataclass(frozen=True)
class VqaPredictions:
    """Answers to questions about pictures."""

    said: list[dict[str, Any]]

    examples: ClassVar[str] = "questions"
    shown: ClassVar[tuple[str, ...]] = (
        "image",
        "question",
        "answer",
        "entropy",
        "mutual_information",
        "rank",
    )

    def rows(self) -> list[dict[str, Any]]:
        """The answers; rank 1 is the one that is least certain, by entropy."""
        order = sorted(range(len(self.said)), key=lambda i: -self.said[i]["entropy"])
        ranks = {place: rank for rank, place in enumerate(order, 1)}
        return [row | {"rank": ranks[i]} for i, row in enumerate(self.said)]

    def write(self, path: str | Path) -> None:
        """Write the answers, see `bella.runs.rows.write_rows`."""
        write_rows(path, self.rows())


# ---------------------------------------------------------------- figures


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """All figures of answers, those of a kind of answer with its name behind (``_yes_no``).

    Beside those of `bella.metrics.vqa.by_type`: how well entropy and mutual information tell wrong
    answers from right ones (``auroc_errors_entropy``, ``auroc_errors_mi``).

    Raises:
        BellaError: answers to questions that nobody else answered.
    """
    if any("accuracy" not in row for row in rows):
        raise BellaError("Nobody's answers stand beside some of these questions: add them.")
    found: dict[str, float] = {}
    for kind, some in vqa.by_type(rows).items():
        behind = "" if kind == "all" else f"_{kind.replace('/', '_')}"
        found |= {f"{name}{behind}": value for name, value in some.items()}
    wrong = torch.tensor([not row["exact_match"] for row in rows])
    for name, of in (("entropy", "entropy"), ("mi", "mutual_information")):
        values = torch.tensor([row[of] for row in rows], dtype=torch.float64)
        told = bool((values > 0).any()) and len(wrong.unique()) == 2
        found[f"auroc_errors_{name}"] = metrics.auroc(values, wrong) if told else math.nan
    return found


def keep(folder: Path, rows: Sequence[dict[str, Any]], posterior: Posterior) -> dict[str, float]:
    """Write the answers, how alike the particles are (of several), and the figures.

    Returns:
        The figures.
    """
    write_answers(folder / ANSWERS, rows)
    if posterior.particles > 1:
        alike = weight_similarities(posterior)
        write_json(folder / SIMILARITY, {"similarity": alike.tolist()})
    found = figures(rows)
    write_json(folder / FIGURES, found)
    return found


# ---------------------------------------------------------------- opening


class Model(BaseModel):
    """The fields of ``model.json``; a later version may add some."""

    model_config = ConfigDict(strict=True, extra="allow")

    task: str
    network: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")
    quantised: str | None = None
    columns: dict[str, str]
    image_size: int | None = Field(ge=1, le=LARGEST_SIDE)
    prompt: str
    answer_tokens: int = Field(ge=1)
    projector: bool
    seed: int = Field(ge=0, lt=2**63)


def open_vqa_run(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> VqaRun:
    """Open what `train_vqa` left in a folder, also while it trains or after it was stopped.

    Args:
        folder: of the run.
        device: where to run, such as ``cpu`` or ``cuda``; the accelerator if there is one.
        precision: in which answers are written, see `bella.in_precision`; ``float32`` whatever the
            run was trained in.

    Raises:
        BellaError: no run folder, a damaged one, one whose network cannot be opened any more, or
            an unknown precision.
    """
    place, folder = device_named(device), Path(folder)
    try:
        model = Model.model_validate(read_sealed_json(folder / MODEL))
    except ValidationError as error:
        raise BellaError(f"{folder / MODEL} is damaged ({said_wrong(error)}): fit again.") from None
    seeing = open_seeing(model.network, model.image_size, model.seed, quantised=model.quantised)
    if model.projector:
        load_projector(seeing.network, folder / PROJECTOR)
    posterior = bella.load(folder, seeing.network)
    posterior.eval().to(place)
    precision_for(posterior, precision)  # an unknown one is refused before any answer
    return VqaRun(posterior, seeing, model.prompt, model.columns, model.answer_tokens, precision)


@torch.no_grad()
def load_projector(network: nn.Module, path: Path) -> None:
    """Give a network the projector of a file.

    Raises:
        BellaError: there is none, or it is another network's.
    """
    projector = projector_of(network)
    try:
        tensors = load_file(path)
        if {name: x.shape for name, x in tensors.items()} != {
            name: x.shape for name, x in projector.state_dict().items()
        }:
            raise BellaError(f"{path} holds the projector of another network.")
    except (OSError, SafetensorError) as error:
        raise BellaError(f"{path} is no file of a projector ({shortened(error)}).") from None
    projector.load_state_dict(tensors)
